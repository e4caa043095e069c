"""Checkpoints that are whole or not there, and that notice one flipped byte.

    checkpoints/1200/arrays/...      the state's arrays, written by orbax
    checkpoints/1200/meta.json       what else the run must remember
    checkpoints/1200/manifest.json   size and sha256 of every file above

orbax restores flipped bytes of array data without an error, so each file is checked against the manifest before a
restore. A damaged checkpoint is renamed to 1200.damaged, never deleted, and the one before it is taken.
"""
import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.files import first_line, free_space, sync_folder, unused_path
from ssd4rec_jax.run.manifest import Damaged, verify, write_manifest
from ssd4rec_jax.parallel.processes import is_first, on_first, together

ARRAYS, META = 'arrays', 'meta.json'
MAX_PADDING = 4096  # rows


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the step, the state (arrays placed as in `like`) and the meta dict."""

    step: int
    state: Any
    meta: dict


class Checkpoints:
    """The checkpoints of one run, which all its processes write and read together, on a folder that all see.

    Kept are the newest `keep` and each one that a kept one's meta['best_step'] names. rows: of item tables; their
    arrays may be padded with rows of zeros to another length than the one stored (see ssd4rec_jax.parallel.table_shard).
    seconds_waited: how long callers have waited for checkpoints to be written, so far.
    """

    def __init__(self, directory: str | Path, keep: int = 2, rows: int | None = None):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.rows = rows
        self.seconds_waited = 0.0
        # Compression of parameters saves nothing, takes eight times as long and as much memory again.
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._thread = ThreadPoolExecutor(1, 'checkpoint')  # ended, not killed, when the process ends
        self._under_way: Future | None = None

    def steps(self) -> list[int]:
        """Steps of all checkpoints, ascending; the newest may still prove damaged."""
        self.wait()
        return self._steps()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Begin a checkpoint of a pytree of arrays, which may change as soon as this returns.

        The rest happens while the caller goes on; an error comes with the next call, CheckpointError. On failure nothing
        of the checkpoint is left and the older ones stay.
        """
        self.wait()
        started = time.monotonic()
        partial = self.directory / f'.partial-{step}'

        def begin():
            with self._explained(step, partial):
                self._remove_partial()
                partial.mkdir(parents=True)

        on_first(begin)
        with self._explained(step, partial):
            self._checkpointer.save(partial / ARRAYS, args=ocp.args.PyTreeSave(_by_name(state)))
        self._under_way = self._thread.submit(self._complete, step, partial, meta)
        self.seconds_waited += time.monotonic() - started

    def wait(self) -> None:
        """Wait until the checkpoint that was begun is whole; CheckpointError if it could not be written."""
        if self._under_way is None:
            return
        started = time.monotonic()
        under_way, self._under_way = self._under_way, None
        try:
            together(under_way.result)
        finally:
            self.seconds_waited += time.monotonic() - started

    def _complete(self, step: int, partial: Path, meta: dict) -> None:
        """What follows the copy of the arrays, in a thread: no collective of devices may be in here."""
        final = self.directory / str(step)
        with self._explained(step, partial):
            self._checkpointer.wait_until_finished()  # on every process
            if not is_first():
                return
            (partial / META).write_text(json.dumps(meta, allow_nan=False))
            write_manifest(partial)
            if final.exists():  # the same step again, after its checkpoint could not be used
                final.rename(unused_path(final.with_name(f'{step}.replaced')))
            partial.rename(final)
            sync_folder(self.directory)
        self._retire()

    @contextlib.contextmanager
    def _explained(self, step: int, partial: Path):
        try:
            yield
        except (OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f'checkpoint {self.directory / str(step)} cannot be written ({_reason(error)}); '
                f'{free_space(self.directory)} are free there. Older checkpoints are untouched'
            ) from error

    def restore_latest(self, like: Any) -> Restored | None:
        """The newest sound checkpoint, None where there is none at all; CheckpointError if none is sound.

        like: pytree of arrays (or jax.ShapeDtypeStruct) with the structure, shapes, dtypes and shardings to restore.
        """
        self.wait()
        step = on_first(self._newest_sound)
        return None if step is None else self._restore(step, like)

    def restore_best(self, like: Any) -> Restored:
        """The checkpoint that the newest sound one names as the best; CheckpointError if there is none.

        like: as for restore_latest, or a dict of some of the state's fields ({'params': ...}): the others are then left
        on the disk.
        """
        self.wait()
        return self._restore(on_first(self._best), like)

    def _newest_sound(self) -> int | None:
        """Its step; damaged ones are set aside on the way."""
        found = self._steps()
        for step in reversed(found):
            try:
                verify(self.directory / str(step))
                return step
            except Damaged as damage:
                aside = unused_path(self.directory / f'{step}.damaged')
                (self.directory / str(step)).rename(aside)
                logging.warning('checkpoint %s is damaged (%s): kept as %s, going on with the one before',
                                self.directory / str(step), damage, aside.name)
        if found:
            raise CheckpointError(f'no checkpoint in {self.directory} is sound; the damaged ones were kept aside')
        return None

    def _best(self) -> int:
        latest = self._newest_sound()
        best = None if latest is None else self._meta(latest).get('best_step')
        if not best:
            raise CheckpointError(f'{self.directory} holds no evaluated checkpoint yet: train at least one epoch')
        try:
            verify(self.directory / str(best))
        except Damaged as damage:
            raise CheckpointError(f'the best checkpoint {self.directory / str(best)} is damaged: {damage}') from damage
        return best

    def _meta(self, step: int) -> dict:
        return json.loads((self.directory / str(step) / META).read_text())

    def _restore(self, step: int, like: Any) -> Restored:
        path = self.directory / str(step)
        wanted = _by_name(like)
        fields = {_field(name) for name in wanted}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            # orbax would cast another dtype without a word, and names no array that has another shape.
            stored = checkpointer.metadata(path / ARRAYS).item_metadata.tree
            stored = {name: array for name, array in stored.items() if _field(name) in fields}
            for name in [*wanted, *stored]:
                there, here = stored.get(name), wanted.get(name)
                if _kind(there) != _kind(here) and not self._differ_in_padding(there, here):
                    raise CheckpointError(
                        f'checkpoint {path} belongs to another config: {name} is {_kind(there)} there and {_kind(here)} here'
                    )
            how = {
                name: ocp.ArrayRestoreArgs(
                    dtype=leaf.dtype, sharding=getattr(leaf, 'sharding', None), global_shape=leaf.shape, strict=False
                ) for name, leaf in wanted.items()
            }
            arrays = checkpointer.restore(path / ARRAYS, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True))
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
        return Restored(step, state, self._meta(step))

    def _differ_in_padding(self, there, here) -> bool:
        """Whether two arrays are the same item table, padded for other numbers of devices."""
        if self.rows is None or there is None or here is None or there.dtype != here.dtype:
            return False
        lengths = {array.shape[0] if array.shape else 0 for array in (there, here)}
        return there.shape[1:] == here.shape[1:] and self.rows <= min(lengths) and max(lengths) < self.rows + MAX_PADDING

    def _steps(self) -> list[int]:
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def _retire(self) -> None:
        newest = self._steps()[-self.keep:]
        try:
            named = {self._meta(step).get('best_step') for step in newest}
        except (OSError, ValueError):
            return  # a damaged one may name the best; restore_latest will set it aside
        for step in self._steps():
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


def _field(name: str) -> str:
    """The state's field that an array belongs to: 'params' for 'params.item_embedding'."""
    return name.partition('.')[0]


def _kind(array: Any) -> str:
    """'float32[3, 4]' of an array or of its metadata."""
    return 'absent' if array is None else f'{array.dtype}{list(array.shape)}'


def _reason(error: BaseException) -> str:
    """Why a write failed; orbax wraps the system's reason in a page of its own words."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else first_line(error)
