"""Random logs with the sizes of real data sets, so that a benchmark needs no download."""
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset

QUANTILES = 0, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.999, 1


class LogShape(NamedTuple):
    """The numbers of users and items of a log, and the history lengths at the QUANTILES of its users."""

    users: int
    items: int
    lengths: tuple[int, ...]


# Prepared Amazon Beauty and MovieLens 100K, and a log with the published size and mean length of KuaiRand-Pure.
SHAPES = {
    'beauty': LogShape(22_363, 12_101, (5, 5, 6, 9, 14, 26, 43, 98, 204)),
    'kuairand': LogShape(23_951, 7_111, (5, 19, 33, 58, 96, 156, 233, 435, 806)),
    'ml-100k': LogShape(943, 1_349, (19, 33, 64, 147, 241, 357, 434, 623, 648)),
}


def random_log(name: str, shape: LogShape) -> SequenceDataset:
    """A log of items drawn uniformly, in histories whose lengths follow the shape's quantiles."""
    rng = np.random.default_rng(0)
    lengths = np.exp(np.interp(rng.random(shape.users), QUANTILES, np.log(shape.lengths)))
    return _log(name, lengths.round().astype(np.int64), shape.items, rng)


def equal_histories(length: int, users: int, items: int) -> SequenceDataset:
    """A log of `users` users whose validation histories are all `length` items long."""
    return _log(f'{users} x {length}', np.full(users, length + 2), items, np.random.default_rng(0))


def _log(name, lengths, items, rng):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SequenceDataset(
        name=name, offsets=offsets, fingerprint='', items=rng.integers(1, items + 1, offsets[-1], dtype=np.int32),
        user_ids=np.arange(len(lengths)), item_ids=np.arange(1, items + 1),
    )
