"""Checkpoints that are whole or not there, and that notice one flipped byte.

    checkpoints/1200/arrays/...      the state's arrays, written by orbax
    checkpoints/1200/meta.json       what else the run must remember
    checkpoints/1200/manifest.json   size and sha256 of every file above

orbax restores flipped bytes of array data without an error, so each file is checked against the manifest before a
restore. A damaged checkpoint is renamed to 1200.damaged, never deleted, and the one before it is taken; a process that
only reads passes it over.
"""
import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from logging import LogRecord
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.files import first_line, free_space, sync_folder, unused_path
from ssd4rec_jax.parallel.processes import is_first, on_first, several, together
from ssd4rec_jax.run.manifest import Damaged, verified_json, verify, write_manifest

ARRAYS, META = 'arrays', 'meta.json'
MAX_PADDING = 4096  # rows
_STEP = re.compile('0|[1-9][0-9]*')  # isdigit() and int() disagree on digits such as '²'
_REPLACED = '.replaced'
# How long a process that fails waits for the others to finish the checkpoint under way.
_FAILING_SECONDS = 30
# How often and how long apart what is left of a failed save is removed, until nothing is.
_REMOVALS, _REMOVAL_SECONDS = 10, 0.1


class BestLost(CheckpointError):
    """The best checkpoint is damaged or gone, and no other one that ends an epoch is kept."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the step, the state (arrays placed as in `like`) and the meta dict."""

    step: int
    state: Any
    meta: dict


def _is_for_users(record: LogRecord) -> bool:
    """Whether a log record may pass: orbax logs each error that it raises as well, with pages of its stack."""
    return not (record.exc_info and 'orbax' in record.pathname)


def _report_unless_closed_loop(unraisable: Any) -> None:
    """sys.unraisablehook without what tensorstore prints for each array when orbax gives a failing save up.

    Its callbacks then call an event loop that is closed already; the reason itself comes as a CheckpointError.
    """
    if str(unraisable.exc_value) != 'Event loop is closed':
        _report(unraisable)


logging.get_absl_logger().addFilter(_is_for_users)
_report, sys.unraisablehook = sys.unraisablehook, _report_unless_closed_loop


class Checkpoints:
    """The checkpoints of one run, which all its processes write and read together, on a folder that all see.

    Kept are the newest `keep` and each one that a kept one's meta['best_step'] names. rows: of item tables; their
    arrays may be padded with rows of zeros to another length than the one stored (ssd4rec_jax.parallel.table_shard).
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

    def save(self, step: int, state: Any, meta: dict, then: Callable[[], None] | None = None) -> None:
        """Begin a checkpoint of a pytree of arrays, which may change as soon as this returns.

        The rest happens while the caller goes on; an error comes with the next call, CheckpointError. On failure
        nothing of the checkpoint is left and the older ones stay. then: is called on the first process, in another
        thread, once the checkpoint is whole.
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
        self._under_way = self._thread.submit(self._complete, step, partial, meta, then)
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

    def close(self) -> None:
        """Wait for the checkpoint under way before the process ends with another error; a failure is only warned of.

        The threads that write it are not started any more once Python shuts down, so it would be lost.
        """
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        try:
            under_way.result(_FAILING_SECONDS if several() else None)
        except Exception as error:  # whatever it is, the error that ends the process is the one to tell
            logging.warning('%s', first_line(error))

    def _complete(self, step: int, partial: Path, meta: dict, then: Callable[[], None] | None) -> None:
        """What follows the copy of the arrays, in a thread: no collective of devices may be in here."""
        final = self.directory / str(step)
        with self._explained(step, partial):
            self._checkpointer.wait_until_finished()  # on every process
            if not is_first():
                return
            (partial / META).write_text(json.dumps(meta, allow_nan=False))
            write_manifest(partial)
            replaced = self.directory / f'{step}{_REPLACED}'
            again = final.exists()  # the same step, under another config
            if again:
                final.rename(replaced)
            partial.rename(final)
            sync_folder(self.directory)
            if again:
                shutil.rmtree(replaced, ignore_errors=True)
            if then:
                then()
        self._retire()

    @contextlib.contextmanager
    def _explained(self, step: int, partial: Path):
        try:
            yield
        except (OSError, ValueError) as error:
            self._remove_partial()
            raise CheckpointError(
                f'checkpoint {self.directory / str(step)} cannot be written ({_reason(error)}); '
                f'{free_space(self.directory)} are free there. Older checkpoints are untouched'
            ) from error

    def restore_latest(self, like: Any) -> Restored | None:
        """The newest sound checkpoint, None where there is none at all; CheckpointError if none is sound.

        Damaged ones are renamed on the way, so only the process that trains may call this.
        like: pytree of arrays (or jax.ShapeDtypeStruct) with the structure, shapes, dtypes and shardings to restore.
        """
        self.wait()
        step = on_first(lambda: self._newest_sound(self._set_aside))
        return None if step is None else self.restore(step, like)

    def restore_best(self, like: Any) -> Restored:
        """The checkpoint that `best_step` finds; CheckpointError if there is none.

        like: as for restore_latest, or a dict of some of the state's fields ({'params': ...}): the others are then left
        on the disk.
        """
        step = self.best_step()
        if not step:
            raise CheckpointError(f'{self.directory} holds no evaluated checkpoint yet: train at least one epoch')
        return self.restore(step, like)

    def best_step(self, *, set_aside: bool = False) -> int | None:
        """The step of the checkpoint that the newest sound one names as the best; None where no epoch has ended yet.

        Where that one is damaged, the best of the others that end an epoch takes its place, with a warning;
        BestLost if there is none. CheckpointError where one cannot be read. set_aside: rename damaged ones, which only
        the process that trains may do.
        """
        self.wait()
        return on_first(lambda: self._best(self._set_aside if set_aside else self._pass_over))

    def meta(self, step: int) -> dict:
        """The meta dict of a checkpoint; CheckpointError if it is damaged."""
        try:
            return verified_json(self.directory / str(step), META)
        except Damaged as damage:
            raise CheckpointError(f'checkpoint {self.directory / str(step)} is damaged: {damage}') from damage
        except OSError as error:
            raise self._unreadable(step, error) from error

    def newest_meta(self) -> dict | None:
        """The meta dict of the newest checkpoint whose meta is sound, None where there is none; no array is read."""
        for step in reversed(self._steps()):
            try:
                return verified_json(self.directory / str(step), META)
            except Damaged:
                continue
            except OSError as error:
                raise self._unreadable(step, error) from error
        return None

    def _newest_sound(self, on_damage: Callable[[int, Damaged, str], None]) -> int | None:
        """The newest sound checkpoint's step; None where there is no checkpoint at all."""
        self._put_back_replaced()
        found = self._steps()
        for step in reversed(found):
            if self._is_sound(step, on_damage, 'going on with the one before'):
                return step
        if found:
            raise CheckpointError(
                f'no checkpoint in {self.directory} is sound, and none was deleted: restore one from a copy, or start '
                'the training anew with --restart, which sets this run aside'
            )
        return None

    def _best(self, on_damage: Callable[[int, Damaged, str], None]) -> int | None:
        latest = self._newest_sound(on_damage)
        best = None if latest is None else self.meta(latest).get('best_step')
        if not best:
            return None
        if (self.directory / str(best)).exists():
            if best == latest or self._is_sound(best, on_damage, 'the best of the others takes its place'):
                return best
        else:
            logging.warning(
                'the best checkpoint %s is gone: the best of the others takes its place', self.directory / str(best)
            )
        others = [step for step in self._steps() if step != best and self._is_sound(step, on_damage, '')]
        # A checkpoint that ends an epoch holds the score of the evaluation before it.
        ended = [
            (meta.get('score') or 0.0, step) for meta, step in ((self.meta(step), step) for step in others)
            if meta.get('epoch') and not meta.get('step_in_epoch')
        ]
        if not ended:
            raise BestLost(
                f'the best checkpoint {self.directory / str(best)} is damaged or gone and no other that ends an epoch '
                'is kept: the same training command goes on from the newest and finds the best anew'
            )
        return max(ended)[1]

    def _is_sound(self, step: int, on_damage: Callable[[int, Damaged, str], None], remedy: str) -> bool:
        try:
            verify(self.directory / str(step))
        except Damaged as damage:
            on_damage(step, damage, remedy)
            return False
        except OSError as error:
            raise self._unreadable(step, error) from error
        return True

    def _unreadable(self, step: int, error: BaseException) -> CheckpointError:
        return CheckpointError(
            f'checkpoint {self.directory / str(step)} cannot be read ({_reason(error)}): try again, or rename its '
            'folder to go on with the one before'
        )

    def _set_aside(self, step: int, damage: Damaged, remedy: str) -> None:
        path = self.directory / str(step)
        aside = unused_path(self.directory / f'{step}.damaged')
        try:
            path.rename(aside)
        except OSError as error:
            raise CheckpointError(
                f'checkpoint {path} is damaged ({damage}) and cannot be set aside ({error})'
            ) from error
        logging.warning('checkpoint %s is damaged (%s): kept as %s, %s', path, damage, aside.name, remedy or 'not used')

    def _pass_over(self, step: int, damage: Damaged, remedy: str) -> None:
        logging.warning('checkpoint %s is damaged (%s): %s', self.directory / str(step), damage, remedy or 'not used')

    def restore(self, step: int, like: Any) -> Restored:
        """The checkpoint of one step, which has been found sound; like: as for restore_best."""
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
                        f'checkpoint {path} belongs to another config: {name} is {_kind(there)} there and '
                        f'{_kind(here)} here'
                    )
            how = {
                name: ocp.ArrayRestoreArgs(
                    dtype=leaf.dtype, sharding=getattr(leaf, 'sharding', None), global_shape=leaf.shape, strict=False
                ) for name, leaf in wanted.items()
            }
            args = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
            try:
                arrays = checkpointer.restore(path / ARRAYS, args=args)
            except (OSError, ValueError) as error:
                raise self._unreadable(step, error) from error
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
        return Restored(step, state, self.meta(step))

    def _differ_in_padding(self, there, here) -> bool:
        """Whether two arrays are the same item table, padded for other numbers of devices."""
        if self.rows is None or there is None or here is None or there.dtype != here.dtype:
            return False
        lengths = {array.shape[0] if array.shape else 0 for array in (there, here)}
        is_padding = self.rows <= min(lengths) and max(lengths) < self.rows + MAX_PADDING
        return there.shape[1:] == here.shape[1:] and is_padding

    def _steps(self) -> list[int]:
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if _STEP.fullmatch(path.name))

    def _retire(self) -> None:
        newest = self._steps()[-self.keep:]
        try:
            named = {self.meta(step).get('best_step') for step in newest}
        except CheckpointError:
            return  # a damaged one may name the best; restore_latest will set it aside
        for step in self._steps():
            if step not in newest and step not in named:
                doomed = (self.directory / str(step)).rename(self.directory / f'.partial-{step}-retired')
                shutil.rmtree(doomed, ignore_errors=True)

    def _put_back_replaced(self) -> None:
        """Put back what a process that was killed between two renames had moved out of the way of its successor."""
        for path in self.directory.glob(f'*{_REPLACED}'):
            with contextlib.suppress(OSError):  # of a read-only folder
                if (final := path.with_suffix('')).exists():
                    shutil.rmtree(path)
                else:
                    path.rename(final)

    def _remove_partial(self) -> None:
        """Remove what a killed process or a failed save left unfinished; only for the one process that saves here."""
        for _ in range(_REMOVALS):  # Threads that still write for a save that failed bring a file back.
            left = list(self.directory.glob('.partial-*'))
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            if not left:
                break
            time.sleep(_REMOVAL_SECONDS)


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
