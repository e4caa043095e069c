"""Columns of a log that are kept beside its events: integers, floats, or categories as codes with a vocabulary."""
import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from ssd4rec_jax.data import ids
from ssd4rec_jax.data.vocabulary import TEXT_ARRAYS, TextIds
from ssd4rec_jax.errors import DataError

_INTEGER = r'^(0|-?[1-9][0-9]{0,17})$'


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """One value for each event.

    values: [events] int64; float64 with NaN where a value is missing; or, where there are categories, int32 codes:
      code k > 0 is categories[k - 1], and 0 is a missing value.
    categories: the texts in order of first appearance; None for numbers.
    """

    values: np.ndarray
    categories: TextIds | None = None

    def at(self, events: np.ndarray) -> 'Feature':
        """The values of some events, given by a mask or by their positions."""
        return dataclasses.replace(self, values=self.values[events])

    def numbers(self, events: np.ndarray) -> np.ndarray:
        """float32, the values (of categories the codes) at some positions, as networks read them."""
        return self.values.take(events, mode='clip').astype(np.float32)


def as_feature(parts: list[pl.Series], name: str, source: str) -> Feature:
    """The values of a whole column out of those of its parts.

    They are integers where each value is one, else numbers where each that is not missing is one, else categories.
    DataError where the column holds lists or the like.
    """
    for part in parts:
        if part.dtype.is_nested() or part.dtype in (pl.Object, pl.Binary):
            raise DataError(f'{source}: column {name} holds {part.dtype}: --features takes numbers and texts')
    if all(part.dtype.is_numeric() or part.dtype == pl.Boolean for part in parts):
        integers = [part.cast(pl.Int64, strict=False) for part in parts if not part.dtype.is_float()]
        whole = len(integers) == len(parts) and not any(part.null_count() for part in integers)
        values = integers if whole else [part.cast(pl.Float64).fill_null(float('nan')) for part in parts]
        return Feature(pl.concat([part.rename('') for part in values]).to_numpy())
    texts = pl.concat([part.cast(pl.String).rename('') for part in parts]).str.strip_chars()
    texts = texts.set(texts.is_in(['', *ids.MISSING_WORDS]), None)
    if texts.null_count() == 0 and texts.str.contains(_INTEGER).all():
        return Feature(texts.cast(pl.Int64).to_numpy())
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() == texts.null_count():
        return Feature(numbers.fill_null(float('nan')).to_numpy())
    known = texts.drop_nulls().unique(maintain_order=True)
    codes = texts.cast(pl.Enum(known)).to_physical().cast(pl.Int32) + 1
    return Feature(codes.fill_null(0).to_numpy(), TextIds.of(known.to_list()))


def feature_arrays(features: dict[str, Feature]) -> dict[str, np.ndarray]:
    """All arrays of some features, named by the features' numbers, since a column may be called anything."""
    arrays = {}
    for number, feature in enumerate(features.values()):
        arrays[f'feature-{number}.values'] = feature.values
        if feature.categories is not None:
            arrays |= {f'feature-{number}.{part}': getattr(feature.categories, part) for part in TEXT_ARRAYS}
    return arrays


def features_of(names: Sequence[str], arrays: dict[str, np.ndarray]) -> dict[str, Feature]:
    """The inverse of feature_arrays, which takes what it reads out of `arrays`; KeyError where one is missing."""
    found = {}
    for number, name in enumerate(names):
        texts = [arrays.pop(key) for part in TEXT_ARRAYS if (key := f'feature-{number}.{part}') in arrays]
        found[name] = Feature(arrays.pop(f'feature-{number}.values'), TextIds(*texts) if texts else None)
    return found


def followed_by(there: Feature, more: Feature, name: str) -> Feature:
    """The values of a log and of more rows behind it; new categories get new codes. DataError for another kind."""
    if there.categories is None and more.categories is None:
        kinds = there.values.dtype.kind, more.values.dtype.kind
        if kinds != ('i', 'f'):
            return Feature(np.concatenate([there.values, more.values]).astype(there.values.dtype))
    if there.categories is None or more.categories is None:
        raise DataError(f'the feature {name} has values of another kind than those of the log: give them alike')
    known = there.categories.tolist()
    number = {text: code for code, text in enumerate(known, start=1)}
    code_of = [0, *(number.setdefault(text, len(number) + 1) for text in more.categories.tolist())]
    codes = np.concatenate([there.values, np.asarray(code_of, np.int32)[more.values]])
    return Feature(codes, TextIds.of(number))
