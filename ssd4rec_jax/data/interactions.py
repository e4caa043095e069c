"""A raw log in memory: the type that every reader returns and preparation takes."""
import dataclasses

import numpy as np

from ssd4rec_jax.data.features import Feature
from ssd4rec_jax.data.tables.batch import BadRow


@dataclasses.dataclass(frozen=True)
class Interactions:
    """A raw log, one array a column, rows in file order. Ratings are not read: the protocol ignores them.

    users, items: [rows] original ids, int32 (int64 where they do not fit) where all ids of the column are integers,
      else objects of type str.
    times: [rows] int64; float64 only where the file has fractional times. Row numbers where the log has no times.
    source: the file or files it came from, as messages name them.
    time_unit: 's', 'ms', 'us' or 'ns' since 1970; '' where times tell the order alone.
    bad_rows: rows that were left out, in file order.
    order_unsure: a file without a header that may have the item first.
    notes: what was guessed of the log and what looks odd in it, as sentences.
    parts: int8 [rows], the place in ssd4rec_jax.data.splits.PARTS of what the row's file is for; None where files are
      not for different ends.
    features: {name: one value a row} of the columns that are kept beside the events.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    source: str
    time_unit: str = ''
    bad_rows: tuple[BadRow, ...] = ()
    order_unsure: bool = False
    notes: tuple[str, ...] = ()
    parts: np.ndarray | None = None
    features: dict[str, Feature] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times)
