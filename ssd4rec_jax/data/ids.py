"""What an id is, the same for every reader and for ids that are asked for on a command line.

Text is an id as it stands but for the white space around it. Digits without a leading zero or a sign are an integer,
stored as one where a whole column consists of them; so are the floats of a column that are all whole (3 and 3.0 are
one id). Empty text, blanks, null and NaN are no id, and neither are the words that tables write for them.
"""
import re
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from ssd4rec_jax.data.vocabulary import TextIds

# What programs write into a table where a value is missing.
MISSING_WORDS = 'nan', 'NaN', 'null', 'NULL', 'None'
_INTEGER = r'^(0|[1-9][0-9]{0,17})$'
_WHOLE = r'^(0|[1-9][0-9]{0,17})(\.0+)?$'
_LAST_EXACT_FLOAT = 2.0**53
_ASKED_INTEGER = re.compile(r'(0|-?[1-9][0-9]{0,17})(?:\.0+)?', re.ASCII)
# What polars strips; Python alone would strip a few control characters too.
_WHITE = '\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000' + ''.join(map(chr, range(0x2000, 0x200b)))
_FEW = 4096  # ids, up to which looking each one up takes less than a join with the vocabulary


def canonical(values: pl.Series, *, integers: bool = False) -> pl.Series:
    """The ids of some rows of a column, Int64 where all of them are integers, else String; null where an id is missing.

    integers: the format says that every id is an integer; what is none is null.
    """
    if values.dtype.is_integer():
        if values.dtype == pl.UInt64 and (values >= 2**63).any():
            return values.cast(pl.String)
        return values.cast(pl.Int64)
    if values.dtype.is_float():
        return _of_floats(values)
    if values.dtype == pl.Binary:
        values = values.cast(pl.String, strict=False)
    texts = values.cast(pl.String).str.strip_chars()
    texts = texts.set(texts.is_in(['', *MISSING_WORDS]), None)
    if integers:
        return texts.cast(pl.Int64, strict=False)
    return texts.cast(pl.Int64) if texts.str.contains(_INTEGER).all() else texts


def _of_floats(values: pl.Series) -> pl.Series:
    finite = values.cast(pl.Float64).set(~values.is_finite(), None)
    whole = (finite == finite.floor()) & (finite.abs() <= _LAST_EXACT_FLOAT)
    if whole.all():
        return finite.cast(pl.Int64)
    return finite.cast(pl.String).str.replace(r'\.0$', '')


def joined(parts: list[pl.Series]) -> np.ndarray:
    """The ids of a whole column out of those of its parts, emptied one by one: int32, int64, or objects of type str.

    No part may hold a null.
    """
    if all(_is_whole(part) for part in parts):
        for k, part in enumerate(parts):
            if part.dtype == pl.String:
                parts[k] = narrow(part.str.replace(r'\.0+$', '').cast(pl.Int64))
        dtype: pl.DataType = pl.Int32() if all(part.dtype == pl.Int32 for part in parts) else pl.Int64()
    else:
        dtype = pl.String()
    column = pl.concat([part.cast(dtype).rename('') for part in parts])
    parts.clear()
    return column.to_numpy()


def _is_whole(part: pl.Series) -> bool:
    return part.dtype != pl.String or bool(part.str.contains(_WHOLE).all())


def narrow(ids: pl.Series) -> pl.Series:
    """Integers in 32 bits where they fit: a log of hundreds of millions of rows takes a third less."""
    fits = ids.dtype == pl.Int64 and ids.is_between(-2**31, 2**31 - 1).all()
    return ids.cast(pl.Int32) if fits else ids


def positions(vocabulary: np.ndarray | TextIds, wanted: Sequence[str]) -> np.ndarray:
    """int64 [wanted], where each id asked for stands in a vocabulary (int64 array or TextIds); -1 where it does not."""
    if not len(wanted):
        return np.zeros(0, np.int64)
    texts = pl.Series(wanted, dtype=pl.String).str.strip_chars()
    if isinstance(vocabulary, TextIds):
        known = vocabulary.series()
    else:
        known = pl.Series(np.asarray(vocabulary, np.int64))
        whole = texts.str.replace(r'\.0+$', '')
        texts = whole.set(~(whole.str.contains(_INTEGER) | whole.str.contains('^-[1-9][0-9]{0,17}$')), None)
        texts = texts.cast(pl.Int64, strict=False)
    table = pl.DataFrame({'id': known}).with_row_index('at')
    found = pl.DataFrame({'id': texts}).join(table, on='id', how='left', maintain_order='left')
    return found['at'].cast(pl.Int64).fill_null(-1).to_numpy()


class IdIndex:
    """`positions` in one vocabulary for many calls: it is read once, and a call then costs as much as it asks for.

    A service asks for an id at a time, for which a column of polars takes longer than all else.
    """

    def __init__(self, vocabulary: np.ndarray | TextIds):
        self._vocabulary = vocabulary
        hashes = np.fromiter(map(hash, vocabulary.tolist()), np.int64, len(vocabulary))
        self._order = np.argsort(hashes, kind='stable')
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self._vocabulary)

    def get(self, wanted: int | str) -> int | None:
        """Where one id stands in the vocabulary; None where it does not."""
        key = self._key(str(wanted))
        own = hash(key)
        at = int(self._hashes.searchsorted(own))
        while at < len(self._hashes) and self._hashes[at] == own:  # Chance may give several ids one hash.
            if self._vocabulary[self._order[at]] == key:
                return int(self._order[at])
            at += 1
        return None

    def positions(self, wanted: Sequence[str]) -> np.ndarray:
        """As the function of that name."""
        if len(wanted) > _FEW:
            return positions(self._vocabulary, wanted)
        keys = [self._key(text) for text in wanted]
        hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
        first, stop = (np.searchsorted(self._hashes, hashes, side=side) for side in ('left', 'right'))
        found = np.full(len(keys), -1, np.int64)
        for number, key in enumerate(keys):
            same = self._order[first[number]:stop[number]]  # One, or several ids to which chance gave one hash.
            found[number] = next((at for at in same if self._vocabulary[at] == key), -1)
        return found

    def _key(self, text: str) -> str | int | None:
        """An id that is asked for as the vocabulary has it, None where it can have none such."""
        text = text.strip(_WHITE)
        if isinstance(self._vocabulary, TextIds):
            return text
        found = _ASKED_INTEGER.fullmatch(text)
        return int(found[1]) if found else None


def texts_of(ids: Iterable[int | str]) -> list[str]:
    """How ids are printed and asked for."""
    return [str(i) for i in ids]
