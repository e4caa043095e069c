"""Original ids of text, stored as Arrow stores them: the bytes of all ids end to end, and where each one ends.

A fixed-width array would give every id the width of the longest one: an id of 40,000 characters among 6,000 would make
900 MB of a log of 5 MB.
"""
import dataclasses
from collections.abc import Iterable
from typing import overload

import numpy as np
import polars as pl

TEXT_ARRAYS = 'offsets', 'bytes'  # of TextIds


@dataclasses.dataclass(frozen=True, eq=False)
class TextIds:
    """Ids in order of their internal number.

    offsets: int64 [ids + 1]; id k is the UTF-8 text bytes[offsets[k]:offsets[k + 1]].
    bytes: uint8, the texts of all ids, one after another.
    """

    offsets: np.ndarray
    bytes: np.ndarray

    @classmethod
    def of(cls, ids: Iterable[str]) -> 'TextIds':
        """From texts in order."""
        encoded = [text.encode() for text in ids]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.concatenate([[0], np.cumsum(lengths)]), np.frombuffer(b''.join(encoded), np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int | np.integer) -> str: ...

    @overload
    def __getitem__(self, at: slice | np.ndarray) -> 'TextIds': ...

    def __getitem__(self, at: int | np.integer | slice | np.ndarray) -> 'str | TextIds':
        """One id, or the ids at some positions."""
        if isinstance(at, (int, np.integer)):
            start, stop = self.offsets[:-1][at], self.offsets[1:][at]
            return self.bytes[start:stop].tobytes().decode()
        starts, lengths = self.offsets[:-1][at], np.diff(self.offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return TextIds(offsets, self.bytes[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])])

    def tolist(self) -> list[str]:
        """All texts."""
        raw, ends = self.bytes.tobytes(), self.offsets.tolist()
        return [raw[start:stop].decode() for start, stop in zip(ends, ends[1:], strict=False)]

    def series(self) -> pl.Series:
        """All texts as a column."""
        return pl.Series(self.tolist(), dtype=pl.String)


def stored_ids(ids: 'np.ndarray | TextIds') -> 'np.ndarray | TextIds':
    """Ids as a prepared data set stores them: an int64 array, or TextIds where they are text."""
    if isinstance(ids, TextIds):
        return ids
    return TextIds.of(ids.tolist()) if ids.dtype.kind in 'OU' else ids.astype(np.int64, copy=False)
