"""A prepared log: columnar, memory-mapped, never half-written."""
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from ssd4rec_jax.errors import DataError
from ssd4rec_jax.files import Unsealed, free_space, parse_json, seal, sync_folder, unseal, write_synced

FORMAT_VERSION = 1
_ARRAYS = ('items', 'offsets', 'user_ids', 'item_ids')
_DESCRIPTION = 'dataset.json'
_FILES = {_DESCRIPTION, *(f'{array}.npy' for array in _ARRAYS)}


@dataclasses.dataclass(frozen=True)
class SequenceDataset:
    """Every user's history in time order, one after another.

    items: int32 [interactions], internal ids 1..num_items in order of first appearance after the k-core.
    offsets: int64 [num_users + 1]; user u's history is items[offsets[u]:offsets[u + 1]].
    user_ids: [num_users] original ids in order of first appearance, int64 or fixed-width str.
    item_ids: [num_items] likewise; internal id i is item_ids[i - 1].
    fingerprint: sha256 hex of the source's content and the settings that shaped the arrays.
    """

    name: str
    items: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    fingerprint: str

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

    @property
    def lengths(self) -> np.ndarray:
        """int64 [num_users], interactions of each user."""
        return np.diff(self.offsets)


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
        for array in _ARRAYS:
            file = partial / f'{array}.npy'
            write_synced(file, lambda out: np.save(out, getattr(dataset, array)))
            checksums[file.name] = _sha256(file)
        description = {
            'format_version': FORMAT_VERSION, 'name': dataset.name, 'fingerprint': dataset.fingerprint,
            'users': dataset.num_users, 'items': dataset.num_items, 'interactions': dataset.num_interactions,
            'sha256': checksums,
        }
        text = json.dumps(seal(description), indent=1) + '\n'
        write_synced(partial / _DESCRIPTION, lambda out: out.write(text.encode()))
        with _locked(path.parent):
            there = open_dataset(path)
            if there is None or there.fingerprint != dataset.fingerprint:  # else another process was first
                if path.exists():
                    path.rename(replaced)
                partial.rename(path)
                sync_folder(path.parent)
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
        if description['format_version'] != FORMAT_VERSION:
            return None
        arrays = {array: _open_array(path / f'{array}.npy', description['sha256'][f'{array}.npy']) for array in _ARRAYS}
        return SequenceDataset(name=description['name'], fingerprint=description['fingerprint'], **arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning('%s: the prepared data set there is damaged (%s)', path, error)
        return None


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
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _FILES)
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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process on this machine is in here for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
