"""The distinct items of a history: where each occurred last, and how often."""
from collections.abc import Iterable

import numpy as np

from ssd4rec_jax.model.seen import COUNTS

_ITEM, _LAST, _COUNT = range(3)


class HeldItems:
    """Grows with the distinct items of a history. Adding an event costs the same however many there are."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._table = np.zeros((3, 8), np.int32)

    @classmethod
    def of_table(cls, table: np.ndarray) -> 'HeldItems':
        """The inverse of `table`."""
        held = cls()
        held._place = {item: place for place, item in enumerate(table[_ITEM].tolist())}
        held._table = table.copy()
        return held

    def add(self, items: Iterable[int], first: int) -> None:
        """Items that follow one another, the first of which is at the position `first` of the history."""
        for position, item in enumerate(items, start=first):
            place = self._place.setdefault(item, len(self._place))
            if place == self._table.shape[1]:
                self._table = np.pad(self._table, [(0, 0), (0, place + 1)])
            # Counts differ in the term up to the last of its buckets alone.
            self._table[:, place] = item, position, min(self._table[_COUNT, place] + 1, COUNTS[-1])

    @property
    def table(self) -> np.ndarray:
        """int32 [3, distinct]: the items, their last positions, and how often they occur, at most COUNTS[-1]."""
        return self._table[:, :len(self._place)]

    @property
    def items(self) -> np.ndarray:
        """int32 [distinct]."""
        return self.table[_ITEM]
