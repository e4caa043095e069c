"""Builds packed batches of literal histories without the project's packer."""
import numpy as np

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.packing import PackedBatch


def pack(
    rows: list[list[tuple[int, list[int]]]], tokens: int, segments: int, targets=None, gaps=None
) -> PackedBatch:
    """A batch whose rows hold histories end to end.

    rows: for each row a list of (example id, items). targets: {example id: item}; the target is 1 by default.
    gaps: a function (example id, length of its history) -> the gap before each item; None leaves them out.
    """
    shape = len(rows), tokens
    slots = len(rows), segments
    batch = PackedBatch(
        items=np.zeros(shape, np.int32), segment_ids=np.zeros(shape, np.int32), starts=np.zeros(slots, np.int32),
        lengths=np.zeros(slots, np.int32), targets=np.zeros(slots, np.int32),
        example_ids=np.full(slots, -1, np.int32),
        features=gaps and {TIME_GAP: np.zeros(shape, np.float32)},
    )
    for r, row in enumerate(rows):
        at = 0
        for s, (example, items) in enumerate(row):
            batch.items[r, at:at + len(items)] = items
            batch.segment_ids[r, at:at + len(items)] = s + 1
            if gaps:
                batch.features[TIME_GAP][r, at:at + len(items)] = gaps(example, len(items))
            batch.starts[r, s], batch.lengths[r, s] = at, len(items)
            batch.targets[r, s] = (targets or {}).get(example, 1)
            batch.example_ids[r, s] = example
            at += len(items)
    return batch
