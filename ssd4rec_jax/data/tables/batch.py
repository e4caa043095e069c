"""What every reader of tables yields: some rows as polars read them, and how to find them again in the file."""
from collections.abc import Callable
from typing import NamedTuple

import polars as pl


class BadRow(NamedTuple):
    """A row that is not used.

    place: where it stands, such as 'log.csv:7'. kind: what is wrong, without the value; reason: with it. text: the row.
    """

    place: str
    kind: str
    reason: str
    text: str


class Batch(NamedTuple):
    """Rows in file order.

    frame: columns 'user', 'item' and, unless the order of the rows is the order in time, 'time', of any type; and
      FEATURE + name for each column that is kept beside the events; and PART, Int8 (Interactions.parts), where the
      log's files say what trains.
    place: row number in `frame` -> where the row stands, as in BadRow.
    text: row number in `frame` -> the row as it stands in the file.
    broken: rows that are not in `frame`, since they cannot be split into fields.
    """

    frame: pl.DataFrame
    place: Callable[[int], str]
    text: Callable[[int], str]
    broken: list[BadRow]
