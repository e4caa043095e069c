"""Accounts of the steps of an epoch: loss, speed and progress, settled while the next step already runs."""
import math
import time

import jax

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import EpochPlan
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.train.cost import FIRST_STEPS, LONG_EPOCH, time_note
from ssd4rec_jax.train.session import TrainSession


class StepAccounts:
    """Waits for the loss of a step, checks it, advances the session's progress, and logs a line where one is due.

    pending: (the number of a step in its epoch, counted from 1; its loss) for the step that is not settled yet.
    first_step: the number of steps that the run made before this epoch.
    """

    def __init__(
        self, session: TrainSession, examples: ExampleIndex, plan: EpochPlan, *, first_step: int, reporter: Reporter
    ):
        self.pending: tuple[int, jax.Array] | None = None
        self._session, self._plan, self._first_step, self._reporter = session, plan, first_step, reporter
        self._steps, self._seconds = 0, 0.0
        self._targets = plan.per_step(examples.num_targets)
        self._tokens = plan.per_step(examples.lengths)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time before this call out of the accounts."""
        self._last = time.monotonic()
        self._window = _Window()

    def settle(self) -> None:
        """Account for the pending step, if there is one. Raises TrainingError where its loss is not finite."""
        if self.pending is None:
            return
        (number, loss), self.pending = self.pending, None
        session, step, value = self._session, self._first_step + number, float(loss)
        if not math.isfinite(value):
            raise session.not_finite(f'the loss ({value})', step)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        targets, tokens = int(self._targets[number - 1]), int(self._tokens[number - 1])
        session.progress = session.progress.after_step(seconds, targets, tokens)
        window = self._window
        window.add(seconds, targets, tokens)
        self._reporter.step(value, window.targets / window.seconds)
        self._foretell(seconds)
        program, shape = session.program, self._plan.shape
        if step % program.config.train.log_every == 0 or number == self._plan.num_steps:
            session.log({
                'kind': 'train', 'step': step, 'epoch': session.progress.epoch + 1, 'loss': value,
                'learning_rate': float(program.schedule(step - 1)),
                'targets/s': window.targets / window.seconds, 'tokens/s': window.tokens / window.seconds,
                'packing_fill': tokens / (shape.rows * shape.tokens), 'train_seconds': session.progress.seconds,
            })
            self._window = _Window()

    def _foretell(self, seconds: float) -> None:
        """Say after the first steps of a run's first epoch how long the epoch takes."""
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        first_of_run = self._steps == FIRST_STEPS and self._session.progress.epoch == 0
        if first_of_run and self._plan.num_steps >= LONG_EPOCH:
            self._reporter.note(time_note(self._seconds, FIRST_STEPS, self._plan.num_steps))


class _Window:
    """The totals since the last line of the log."""

    def __init__(self) -> None:
        self.targets, self.tokens, self.seconds = 0, 0, 1e-9

    def add(self, seconds: float, targets: int, tokens: int) -> None:
        self.targets, self.tokens, self.seconds = self.targets + targets, self.tokens + tokens, self.seconds + seconds
