"""A raw log in memory: the type that every reader returns and preparation takes."""
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interactions:
    """A raw log, one array a column, rows in file order. Ratings are not read: the protocol ignores them.

    users, items: [rows] original ids, int32 (int64 where they do not fit) where the format's ids are numbers, else
      objects of type str.
    times: [rows] int64; float64 only where the file has fractional times. Never negative.
    source: the file or files it came from, as messages name them.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.times)
