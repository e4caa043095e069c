"""Checkpoints that are whole or not there, and that notice one flipped byte.

    checkpoints/1200/arrays/...      the state's arrays, written by orbax
    checkpoints/1200/meta.json       what else the run must remember
    checkpoints/1200/manifest.json   size and sha256 of every file above

orbax restores flipped bytes of array data without an error, so each file is checked against the manifest before a
restore. A damaged checkpoint is renamed to 1200.damaged, never deleted, and the one before it is taken.
"""
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from ssd4rec_jax.errors import CheckpointError

ARRAYS, META, MANIFEST = 'arrays', 'meta.json', 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the step, the state (arrays placed as in `like`) and the meta dict."""

    step: int
    state: Any
    meta: dict


class _Damaged(Exception):
    """A checkpoint's files are not what its manifest says."""


class Checkpoints:
    """The checkpoints of one run.

    Kept are the newest `keep` and each one that a kept one's meta['best_step'] names.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending; the newest may still prove damaged."""
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def save(self, step: int, state: Any, meta: dict) -> Path:
        """Write a checkpoint of a pytree of arrays; on failure nothing of it is left and the older ones stay."""
        partial = self.directory / f'.partial-{step}-{os.getpid()}'
        final = self.directory / str(step)
        try:
            self._remove_partial()
            self.directory.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial / ARRAYS, _by_name(state))
            (partial / META).write_text(json.dumps(meta, allow_nan=False))
            manifest = {name: _fingerprint(partial / name) for name in _files(partial)}
            # No spaces: every byte of the manifest means something, so that none can change unnoticed.
            (partial / MANIFEST).write_text(json.dumps(manifest, separators=(',', ':')))
            _sync(partial)
            if final.exists():  # the same step again, after its checkpoint could not be used
                final.rename(_unused(final.with_name(f'{step}.replaced')))
            partial.rename(final)
            _sync_folder(self.directory)
        except (OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f'checkpoint {final} cannot be written ({_reason(error)}); '
                f'{_free(self.directory)} are free there. Older checkpoints are untouched'
            ) from error
        self._retire()
        return final

    def restore_latest(self, like: Any) -> Restored | None:
        """The newest sound checkpoint, None where there is none at all; CheckpointError if none is sound.

        like: pytree of arrays with the structure, shapes, dtypes and shardings to restore.
        """
        found = self.steps()
        for step in reversed(found):
            try:
                return self._restore(step, like)
            except _Damaged as damage:
                aside = _unused(self.directory / f'{step}.damaged')
                (self.directory / str(step)).rename(aside)
                logging.warning('checkpoint %s is damaged (%s): kept as %s, going on with the one before',
                                self.directory / str(step), damage, aside.name)
        if found:
            raise CheckpointError(f'no checkpoint in {self.directory} is sound; the damaged ones were kept aside')
        return None

    def restore_best(self, like: Any) -> Restored:
        """The checkpoint that the newest sound one names as the best; CheckpointError if there is none."""
        latest = self.restore_latest(like)
        best = latest.meta.get('best_step') if latest else None
        if not best:
            raise CheckpointError(f'{self.directory} holds no evaluated checkpoint yet: train at least one epoch')
        try:
            return latest if latest.step == best else self._restore(best, like)
        except (_Damaged, FileNotFoundError) as damage:
            raise CheckpointError(f'the best checkpoint {self.directory / str(best)} is damaged: {damage}') from damage

    def _restore(self, step: int, like: Any) -> Restored:
        path = self.directory / str(step)
        _verify(path)
        flat = _by_name(like)
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None))
            for name, leaf in flat.items()
        }
        with ocp.StandardCheckpointer() as checkpointer:
            # orbax would cast another dtype without a word, and names no array that has another shape.
            stored = _kinds(checkpointer.metadata(path / ARRAYS).item_metadata.tree)
            wanted = _kinds(flat)
            for name in [*wanted, *stored]:
                if stored.get(name) != wanted.get(name):
                    raise CheckpointError(
                        f'checkpoint {path} belongs to another config: {name} is '
                        f'{stored.get(name, "absent")} there and {wanted.get(name, "absent")} here'
                    )
            arrays = checkpointer.restore(path / ARRAYS, target)
        leaves = [arrays[name] for name in flat]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, json.loads((path / META).read_text()))

    def _retire(self) -> None:
        newest = self.steps()[-self.keep:]
        try:
            named = {json.loads((self.directory / str(s) / META).read_text()).get('best_step') for s in newest}
        except (OSError, ValueError):
            return  # a damaged one may name the best; restore_latest will set it aside
        for step in self.steps():
            if step not in newest and step not in named:
                doomed = (self.directory / str(step)).rename(self.directory / f'.partial-{step}-retired')
                shutil.rmtree(doomed, ignore_errors=True)

    def _remove_partial(self) -> None:
        """Remove what a killed process left unfinished; only for the one process that saves here."""
        if self.directory.exists():
            for path in self.directory.glob('.partial-*'):
                shutil.rmtree(path, ignore_errors=True)


def _by_name(tree: Any) -> dict[str, Any]:
    """{path as text: leaf} in the tree's leaf order; orbax then needs no class of ours to restore."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _kinds(flat: dict[str, Any]) -> dict[str, str]:
    """{name: 'float32[3, 4]'} of arrays or of their metadata."""
    return {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in flat.items()}


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, ascending."""
    return iter(sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()))


def _fingerprint(path: Path) -> list:
    with open(path, 'rb') as file:
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, 'sha256').hexdigest()]


def _verify(path: Path) -> None:
    """_Damaged unless the folder holds exactly the files of its manifest, byte for byte."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise _Damaged(f'{MANIFEST}: {_first_line(error)}') from error
    there = [name for name in _files(path) if name != MANIFEST]
    if not isinstance(manifest, dict):
        raise _Damaged(f'{MANIFEST} lists no files')
    if odd := sorted(set(manifest) ^ set(there)):
        raise _Damaged(f'{odd[0]} is {f"listed in {MANIFEST} and missing" if odd[0] in manifest else f"not listed in {MANIFEST}"}')
    for name in there:
        if _fingerprint(path / name) != manifest[name]:
            raise _Damaged(f'{name} is not what {MANIFEST} says was written')


def _sync(folder: Path) -> None:
    """Have a folder's files on the disk before its rename is."""
    for name in _files(folder):
        with open(folder / name, 'rb') as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unused(path: Path) -> Path:
    """path, or path.1, path.2, ... where it is taken."""
    number, candidate = 0, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f'{path.name}.{number}')
    return candidate


def _free(folder: Path) -> str:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return f'{shutil.disk_usage(existing).free / 2**20:,.0f} MiB'


def _reason(error: BaseException) -> str:
    """Why a write failed; orbax wraps the system's reason in a page of its own words."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
