"""A prepared log: columnar, memory-mapped, never half-written."""
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.features import Feature, feature_arrays, features_of
from ssd4rec_jax.data.gaps import Gaps
from ssd4rec_jax.data.splits import Split, leave_out, make_split
from ssd4rec_jax.data.vocabulary import TEXT_ARRAYS, TextIds, stored_ids
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.files import Unsealed, free_space, locked, parse_json, seal, swap_in, unseal, write_synced

FORMAT_VERSION = 2
# Format 1 had neither times nor a report, and ids of text in arrays of fixed width.
_READ_VERSIONS = 1, FORMAT_VERSION
_OUTSIDE = 'outside_'  # begins the names of arrays of users outside the core
_ARRAYS = (
    'items', 'offsets', 'user_ids', 'item_ids', 'times', 'parts',
    'outside_items', 'outside_offsets', 'outside_user_ids', 'outside_times',
)
_IDS = ('user_ids', 'item_ids', 'outside_user_ids')
_DESCRIPTION = 'dataset.json'
_FEATURE = re.compile(r'feature-\d+\.(values|offsets|bytes)\.npy')
# Ids of text are two arrays (TextIds).
_FILES = {
    _DESCRIPTION, *(f'{array}.npy' for array in _ARRAYS), *(f'{ids}.{part}.npy' for ids in _IDS for part in TEXT_ARRAYS)
}


@dataclasses.dataclass(frozen=True)
class Outside:
    """Users of a log whom the core left out, with what they did with items that it kept.

    Nothing is trained on them or measured on them, but they can be recommended to. items, offsets, times: as in
    SequenceDataset; a history may be empty. user_ids: likewise, in any order.
    """

    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray | TextIds
    times: np.ndarray

    def of(self, users: np.ndarray) -> 'Outside':
        """Some of the users, bool [users]."""
        rows = np.repeat(users, np.diff(self.offsets))
        lengths = np.diff(self.offsets)[users]
        return Outside(
            self.items[rows], np.concatenate([[0], np.cumsum(lengths)]), self.user_ids[np.flatnonzero(users)],
            self.times[rows],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """{name: array} of all but the ids, as they are stored."""
        return {f'{_OUTSIDE}{name}': getattr(self, name) for name in ('items', 'offsets', 'times')}

    @classmethod
    def stored(cls, arrays: dict[str, np.ndarray], user_ids: np.ndarray | TextIds | None) -> 'Outside | None':
        """What `arrays` gave, taken out of a dict of arrays; None where there are no such users."""
        if user_ids is None:
            return None
        items, offsets, times = (arrays.pop(f'{_OUTSIDE}{name}') for name in ('items', 'offsets', 'times'))
        return cls(items, offsets, user_ids, times)


@dataclasses.dataclass(frozen=True)
class SequenceDataset:
    """Every user's history in time order, one after another.

    items: int32 [interactions], internal ids 1..num_items in order of first appearance after the k-core.
    offsets: int64 [num_users + 1]; user u's history is items[offsets[u]:offsets[u + 1]].
    user_ids: [num_users] original ids in order of first appearance, an int64 array or, for text, TextIds.
    item_ids: [num_items] likewise; internal id i is item_ids[i - 1].
    fingerprint: sha256 hex of the source's content and the settings that shaped the arrays.
    times: int64 [interactions], when each one was; None where an older version prepared the data.
    time_unit: 's', 'ms', 'us' or 'ns' since 1970; '' where times tell the order alone.
    split: what is held out; None is leave-one-out (`held_out`). It is not stored: settings decide it.
    features: {name: one value for each interaction} of the columns that were asked to be kept.
    typical_gap: the one that measured the gaps of the log before rows were added (Gaps.typical); 0 where none were.
    gaps: what `with_features` adds where a network reads them. They are not stored: times give them.
    parts: int8 [interactions], the place in PARTS of what the log's files say of each; None where they say nothing.
    outside: the users whom the core left out; None where it left out none, or where an older version prepared the data.
    report: what preparation read, left out and noticed (ssd4rec_jax.data.sequences.build_sequences); JSON-ready.
    """

    name: str
    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray | TextIds
    item_ids: np.ndarray | TextIds
    fingerprint: str
    times: np.ndarray | None = None
    time_unit: str = ''
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    split: Split | None = None
    features: dict[str, Feature] = dataclasses.field(default_factory=dict)
    parts: np.ndarray | None = None
    typical_gap: float = 0.0
    gaps: Gaps | None = None
    outside: Outside | None = None

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Items of the vocabulary; item 0, mask and padding, is not counted."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.items)

    @functools.cached_property
    def held_out(self) -> Split:
        """What trains and what is predicted."""
        return self.split or leave_out(self.offsets)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [num_users], interactions of each user."""
        return np.diff(self.offsets)

    @property
    def values_read(self) -> dict[str, Feature | Gaps]:
        """What a network reads of each interaction beside its item, by name: columns, and gaps where it reads them."""
        return {**self.features} if self.gaps is None else {**self.features, TIME_GAP: self.gaps}

    def measured_gaps(self) -> Gaps:
        """The gaps between the interactions of a user, measured by the typical one in training."""
        return Gaps.of(self.times, self.time_unit, self.offsets, self.held_out.train_stop, self.typical_gap)


def with_split(dataset: SequenceDataset, config: DataConfig) -> SequenceDataset:
    """The data set with what data.split holds out; DataError where the log does not allow it."""
    if config.split == 'leave_one_out':
        return dataclasses.replace(dataset, split=None)
    split = make_split(np.asarray(dataset.offsets), dataset.times, dataset.time_unit, config, dataset.parts)
    return dataclasses.replace(dataset, split=split)


def with_features(dataset: SequenceDataset, names: Sequence[str]) -> SequenceDataset:
    """The data set with these of its features alone, TIME_GAP among them or not; ConfigError where it lacks one."""
    columns = [name for name in names if name != TIME_GAP]
    for name in columns:
        if name not in dataset.features:
            raise ConfigError(
                f'the network reads the feature {name} and the prepared data has '
                f'{", ".join(dataset.features) or "none"}: name its column with --features={name}'
            )
    return dataclasses.replace(
        dataset, features={name: dataset.features[name] for name in columns},
        gaps=dataset.measured_gaps() if TIME_GAP in names else None,
    )


def save_dataset(dataset: SequenceDataset, path: Path) -> None:
    """Write to a folder beside `path` and rename it there: `path` is never half-written.

    A prepared data set that lies there is replaced, unless it is this one, as it is where two processes prepare at
    once. DataError if anything else lies there, or if writing fails; what was there before is then still there.
    """
    refuse_foreign_folder(path)
    _remove_leftovers(path)
    partial, replaced = (path.with_name(f'.{path.name}.{what}-{os.getpid()}') for what in ('partial', 'replaced'))
    try:
        partial.mkdir(parents=True)
        checksums = {}
        for name, array in _stored_arrays(dataset).items():
            file = partial / f'{name}.npy'
            write_synced(file, functools.partial(_save_array, array))
            checksums[file.name] = _sha256(file)
        description = {
            'format_version': FORMAT_VERSION, 'name': dataset.name, 'fingerprint': dataset.fingerprint,
            'users': dataset.num_users, 'items': dataset.num_items, 'interactions': dataset.num_interactions,
            'time_unit': dataset.time_unit, 'report': dataset.report, 'sha256': checksums,
        }
        if dataset.typical_gap:
            description['typical_gap'] = dataset.typical_gap
        if dataset.features:
            description['features'] = list(dataset.features)
        text = json.dumps(seal(description), indent=1) + '\n'
        write_synced(partial / _DESCRIPTION, lambda out: out.write(text.encode()))
        with locked(path.parent):
            there = open_dataset(path)
            if there is None or there.fingerprint != dataset.fingerprint:  # else another process was first
                swap_in(partial, path, replaced)
    except OSError as error:
        raise DataError(
            f'{path}: the prepared data set cannot be written ({error}; {free_space(path)} free): '
            'make room or name another folder'
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def open_dataset(path: Path) -> SequenceDataset | None:
    """The prepared data set in a folder, memory-mapped; None, with a warning if it is damaged, where there is none."""
    if not (path / _DESCRIPTION).exists():
        return None
    try:
        description = parse_json((path / _DESCRIPTION).read_bytes())
        with contextlib.suppress(Unsealed):  # of an older version, whose arrays have checksums all the same
            unseal(description)
        if description['format_version'] not in _READ_VERSIONS:
            logging.warning(
                '%s: the prepared data set there is of format %s, which this version does not read', path,
                description['format_version'],
            )
            return None
        arrays: dict[str, Any] = {
            file.removesuffix('.npy'): _open_array(path / file, checksum)
            for file, checksum in description['sha256'].items() if _is_ours(file)
        }
        ids: dict[str, Any] = {name: stored_ids(arrays.pop(name)) if name in arrays else TextIds(
            *(arrays.pop(f'{name}.{part}') for part in TEXT_ARRAYS)
        ) for name in _IDS if name in arrays or f'{name}.{TEXT_ARRAYS[0]}' in arrays}
        outside = Outside.stored(arrays, ids.pop(f'{_OUTSIDE}user_ids', None))
        features = features_of(description.get('features', []), arrays)
        return SequenceDataset(
            name=description['name'], fingerprint=description['fingerprint'],
            time_unit=description.get('time_unit', ''), report=description.get('report', {}), features=features,
            typical_gap=description.get('typical_gap', 0.0), outside=outside, **ids, **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning('%s: the prepared data set there is damaged (%s)', path, error)
        return None


def _stored_arrays(dataset: SequenceDataset) -> dict[str, np.ndarray]:
    """{name: array} of all that is written."""
    arrays = {'items': dataset.items, 'offsets': dataset.offsets}
    vocabularies = {'user_ids': dataset.user_ids, 'item_ids': dataset.item_ids}
    if dataset.outside is not None:
        arrays |= dataset.outside.arrays()
        vocabularies[f'{_OUTSIDE}user_ids'] = dataset.outside.user_ids
    for name, ids in vocabularies.items():
        ids = stored_ids(ids)
        if isinstance(ids, TextIds):
            arrays |= {f'{name}.{part}': getattr(ids, part) for part in TEXT_ARRAYS}
        else:
            arrays[name] = ids
    arrays |= feature_arrays(dataset.features)
    optional = {'times': dataset.times, 'parts': dataset.parts}
    return arrays | {name: array for name, array in optional.items() if array is not None}


def _is_ours(file: str) -> bool:
    """Whether a file of that name is part of a prepared data set."""
    return file in _FILES or _FEATURE.fullmatch(file) is not None


def _save_array(array: np.ndarray, out: BinaryIO) -> None:
    np.save(out, array)


def _open_array(path: Path, checksum: str) -> np.ndarray:
    """The array in a file, memory-mapped; ValueError unless its bytes have the checksum (sha256 hex).

    What is mapped is the file that was read for the checksum, though another process may put a new one in its place.
    """
    with open(path, 'rb') as file:
        if hashlib.file_digest(file, 'sha256').hexdigest() != checksum:
            raise ValueError(f'{path.name} is not what was written')
        file.seek(0)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read_header[np.lib.format.read_magic(file)](file)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, 'r', file.tell(), shape, order='F' if fortran_order else 'C')


def refuse_foreign_folder(path: Path) -> None:
    """DataError if replacing `path` would delete anything that is not a file of a prepared data set."""
    if path.is_dir():
        foreign = sorted(entry.name for entry in path.iterdir() if not _is_ours(entry.name))
    else:
        foreign = [path.name] if path.exists() else []
    if foreign:
        raise DataError(
            f'{path} holds {foreign[0]}, which is not part of a prepared data set: name another or an empty folder'
        )


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while writing `path` left beside it."""
    for leftover in [*path.parent.glob(f'.{path.name}.partial-*'), *path.parent.glob(f'.{path.name}.replaced-*')]:
        try:
            os.kill(int(leftover.name.rpartition('-')[2]), 0)  # signal 0 only asks whether the process lives
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
        except (PermissionError, ValueError, OverflowError):  # not ours to remove
            continue


def _sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
