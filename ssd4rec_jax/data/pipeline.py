"""The epoch's plan as a random-access grain source, read ahead by threads."""
import dataclasses

import grain
import numpy as np

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import EpochPlan, PackedBatch, build_step


@dataclasses.dataclass(frozen=True)
class PackedSteps:
    """grain's random-access protocol over an epoch: step number -> this process's rows of it."""

    examples: ExampleIndex
    plan: EpochPlan
    rows: np.ndarray | slice

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> PackedBatch:
        return build_step(self.examples, self.plan, step, self.rows)


def step_loader(
    examples: ExampleIndex, plan: EpochPlan, *, rows: np.ndarray | slice = slice(None), start_step: int = 0,
    num_threads: int = 2, prefetch: int = 4,
) -> grain.DatasetIterator[PackedBatch]:
    """Iterator over steps start_step, start_step + 1, ... of an epoch, read ahead by threads.

    rows: numbers of those rows of every step that this process holds (see ssd4rec_jax.parallel.mesh.rows_here).
    get_state / set_state are exact at every step, between iterators of the same plan, rows and start_step.
    """
    source = PackedSteps(examples, plan, rows)
    # A thread beyond the buffer's length would have nothing to do; grain warns of it.
    ahead = max(prefetch, num_threads)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    steps = grain.MapDataset.source(source)[start_step:]
    return iter(steps.to_iter_dataset(options))
