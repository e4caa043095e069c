"""The record of a run: what is restored when a session begins, and what is saved and logged while it lasts."""
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from ssd4rec_jax.config.run import RunConfig, to_dict
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.errors import CheckpointError, ConfigError, TrainingError
from ssd4rec_jax.parallel.out_of_memory import is_room_for_copy
from ssd4rec_jax.parallel.processes import is_first, on_first, several
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.checkpoints import BestLost, Checkpoints, Restored
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.run.saved_run import answer_settings, checkpoint_config
from ssd4rec_jax.train.early_stopping import EarlyStopping
from ssd4rec_jax.train.program import TrainProgram
from ssd4rec_jax.train.progress import TrainProgress
from ssd4rec_jax.train.state import TrainState


class _Checkpoint(NamedTuple):
    """A checkpoint that is to be written."""

    step: int
    state: TrainState
    meta: dict


class TrainSession:
    """The checkpoints, the log and the progress of a run, kept in its folder.

    progress: how far the run has come; every `save` stores it in the checkpoint. stored_config: the config of the
    newest checkpoint, None where there is none. Every process has a session, but only the first one writes the log.

    Where epochs are short they do not all end with a checkpoint. The state of the best epoch then waits in memory, and
    is written before the next checkpoint, which names it as the best.
    """

    def __init__(
        self, folder: RunFolder, program: TrainProgram, fingerprint: str, reporter: Reporter,
        on_saved: Callable[[], None] | None = None,
    ):
        """fingerprint: the fingerprint of the prepared data that the run is trained on. on_saved: see Trainer."""
        self._on_saved = on_saved
        self.stored_config: RunConfig | None = None
        self.folder, self.program, self.fingerprint, self.reporter = folder, program, fingerprint, reporter
        self.checkpoints = Checkpoints(folder.checkpoints, rows=program.num_items + 1)
        self.metrics_log = MetricsLog(folder.metrics)
        self.progress: TrainProgress
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None
        self._best: _Checkpoint | None = None  # where it is not written yet

    def restore(self, choose_shape: Callable[[], StepShape], initial: dict | None = None) -> TrainState:
        """Returns the state of the newest checkpoint, or a new state where there is none, and sets progress.

        choose_shape: returns the shape of the packed steps for an epoch that this session begins. initial: the
        parameters of a new state, whole; None draws them. Raises ConfigError where the run was trained on other data,
        or where its steps cannot be split over these devices.
        """
        restored = self.checkpoints.restore_latest(self.program.like)
        if restored is None:
            self._keep_records(lambda record: False)
            self.progress = TrainProgress(choose_shape(), self.fingerprint, self.program.objective.every_prefix)
            state = self.program.create_state() if initial is None else self.program.init_state(initial)
        else:
            self.progress, state = TrainProgress.from_meta(restored.meta), restored.state
            self._go_on(restored, choose_shape)
        devices = self.program.mesh.size
        if self.progress.shape.rows % devices:
            raise ConfigError(
                f'a step has {self.progress.shape.rows} rows, which {devices} devices cannot share evenly: set '
                f'data.rows_per_step to a multiple of {devices}, or resume on a device count that divides it'
            )
        return state

    def _go_on(self, restored: Restored, choose_shape: Callable[[], StepShape]) -> None:
        """Set progress and log back to a restored checkpoint; an epoch that is now packed differently starts again."""
        step, config, every_prefix = restored.step, self.program.config, self.program.objective.every_prefix
        stored = self.stored_config = checkpoint_config(restored.meta, config.dataset)
        self._saved_step = step
        had_best = self.progress.stopping.best_step > 0
        self.progress = self._with_sound_best(self.progress)
        if answer_settings(stored) != answer_settings(config) and self.progress.stopping.best_step:
            self.progress = dataclasses.replace(self.progress, stopping=self.progress.stopping.forget())
        progress = self.progress
        if progress.fingerprint != self.fingerprint:
            raise ConfigError(
                f'{self.folder.path} was trained on another log or other data settings (fingerprint '
                f'{progress.fingerprint[:12]} there, {self.fingerprint[:12]} here): name another --workdir'
            )
        if had_best and progress.stopping.best is None and progress.epoch >= config.train.max_epochs:
            raise ConfigError(
                f'{self.folder.path} has trained all of its {progress.epoch} epochs and keeps no evaluated checkpoint '
                f'of this config: go on with --set=train.max_epochs={progress.epoch + 1} or more, and --adopt_config'
            )
        # What a killed session logged after this checkpoint is computed again, and logged again.
        self._keep_records(lambda r: r['step'] <= step and r.get('kind') != 'test')
        self.reporter.note(
            f'going on from step {step} (epoch {progress.epoch + 1}, {progress.step_in_epoch} steps of it done)'
        )
        same_plan = _plan_settings(to_dict(stored)) == _plan_settings(to_dict(config))
        if not same_plan or progress.every_prefix != every_prefix:
            self.progress = dataclasses.replace(
                progress, shape=choose_shape(), step_in_epoch=0, every_prefix=every_prefix
            )
            self.reporter.note(f'the config packs epochs in another way: epoch {progress.epoch + 1} starts anew')

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint of state and progress. Raises TrainingError where a parameter is not finite."""
        self.check_parameters(state)
        newest = self._checkpoint(state)
        if self._best and self._best.step != newest.step:
            self._write(self._best)
        self._write(newest)

    def end_epoch(self, state: TrainState, *, is_best: bool) -> None:
        """Save the state after an epoch if that is due; otherwise keep it in memory if this epoch is the best so far.

        All processes must call it.
        """
        if is_best:
            self._best = None  # before the copy, as two might not fit
        if on_first(lambda: self.is_save_due(epoch_ends=True) or not is_room_for_copy(state, self.program.mesh)):
            self.save(state)
        elif is_best:
            self._best = self._checkpoint(_copied(state))

    def is_saved(self, state: TrainState) -> bool:
        """Whether the newest checkpoint holds this state, as one of this config."""
        return (self._saved_step, self.stored_config) == (int(state.step), self.program.config)

    def close(self) -> None:
        """Write what waits in memory before the process ends with an error; a failure to write is only warned of."""
        if self._best and not several():  # Other processes may not fail, and would not take part in it.
            self.checkpoints.close()
            try:
                self._write(self._best)
            except CheckpointError as error:
                logging.warning('%s', error)
        self.checkpoints.close()

    def _checkpoint(self, state: TrainState) -> _Checkpoint:
        meta = {
            **self.progress.to_meta(), 'config': to_dict(self.program.config), 'averaged': sorted(state.averaged),
        }
        return _Checkpoint(int(state.step), state, meta)

    def _write(self, checkpoint: _Checkpoint) -> None:
        self.checkpoints.save(*checkpoint, then=self._on_saved)
        self.stored_config, self._on_saved, self._saved_at = self.program.config, None, time.monotonic()
        self._saved_step, self._best = checkpoint.step, None

    def _with_sound_best(self, progress: TrainProgress) -> TrainProgress:
        """The progress, with another best epoch where the checkpoint of the best epoch is damaged."""
        best = progress.stopping.best_step
        if not best:
            return progress
        lost = f'the parameters of the best epoch, {progress.stopping.best_epoch} (step {best}), are lost'
        try:
            found = self.checkpoints.best_step(set_aside=True)
        except BestLost:  # and not where a disk fails to read: then nothing is lost
            found = None
        if found == best:
            return progress
        if found is None:
            self.reporter.note(f'{lost}: the next epoch is the best')
            return dataclasses.replace(progress, stopping=EarlyStopping())
        other = TrainProgress.from_meta(self.checkpoints.meta(found))
        self.reporter.note(
            f'{lost}: epoch {other.epoch} (step {found}) is the best that is left'
        )
        stopping = EarlyStopping(other.score or 0.0, other.epoch, found, progress.epoch - other.epoch)
        return dataclasses.replace(progress, stopping=stopping)

    def is_save_due(self, *, epoch_ends: bool = False) -> bool:
        """Whether train.checkpoint_seconds have passed since the last checkpoint."""
        seconds = self.program.config.train.checkpoint_seconds
        return (seconds > 0 or epoch_ends) and time.monotonic() - self._saved_at >= seconds

    def log(self, record: dict) -> None:
        """Append a record to metrics.jsonl and report it."""
        if is_first():
            self.metrics_log.write(record)
            self.reporter.logged(record)

    def check_parameters(self, state: TrainState) -> None:
        """Raise TrainingError where a parameter is not finite."""
        if not _all_finite(state.params):
            raise self.not_finite('a parameter', int(state.step))

    def not_finite(self, what: str, step: int) -> TrainingError:
        """The error that says what is not finite, at which step, and what to do."""
        if self._best:
            self._write(self._best)
        good = self.checkpoints.steps()
        last = f'the last good checkpoint is {self.folder.checkpoints / str(good[-1])}' if good else 'no checkpoint yet'
        return TrainingError(
            f'{what} is not finite at step {step} (epoch {self.progress.epoch + 1}, learning rate '
            f'{float(self.program.schedule(step - 1)):g}); {last}. Lower train.learning_rate or set train.clip_norm'
        )

    def _keep_records(self, wanted: Callable[[dict], bool]) -> None:
        if is_first():
            self.metrics_log.keep(wanted)


def _plan_settings(configs: dict) -> list:
    """The settings that decide the plan of an epoch, and so the meaning of step_in_epoch in a checkpoint."""
    data, train = configs['data'], configs['train']
    return [
        *(data[key] for key in ('max_history', 'tokens_per_row', 'rows_per_step', 'packing')),
        *(train[key] for key in ('targets_per_step', 'seed')),
    ]


@jax.jit
def _copied(state: TrainState) -> TrainState:
    """The state in other buffers, which no train step takes over."""
    return jax.tree.map(jnp.copy, state)


@jax.jit
def _all_finite(params: dict) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
