"""What a person at the terminal sees of a run."""
import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.show.output import Lenient, one_line

METRICS = ('HR@10', 'NDCG@10', 'MRR@10', 'HR@20', 'NDCG@20', 'MRR@20')
_NAMES = {'ssd4rec': 'SSD4Rec'}  # of networks, where they are written otherwise than in a setting
LINE_SECONDS = 60  # between two lines of progress where stdout is no terminal


def network_name(name: str) -> str:
    """How people write the name of a network that model.name selects."""
    return _NAMES.get(name, name)


class Terminal(Reporter):
    """Progress bar with loss, speed and the time that is left, a line for each evaluation, notes.

    Where stdout is no terminal, notes are not wrapped, and a line of progress each minute stands for the bar.
    clock: seconds, as time.monotonic gives them.
    """

    def __init__(self, quiet: bool = False, *, clock: Callable[[], float] = time.monotonic):
        # A training goes on though nobody reads what it says any more.
        self.console = Console(file=cast(IO[str], Lenient(sys.stdout)), highlight=False, quiet=quiet)
        self.console.soft_wrap = not self.console.is_terminal  # a terminal would break lines within words
        self.progress: _Bar | None = None
        self._clock, self._pace = clock, _Pace(clock)
        self._line_due = clock() + LINE_SECONDS

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        self.console.print('\n'.join(map(one_line, text.split('\n'))), markup=False)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        started, bar = self._clock(), self.progress if self.console.is_terminal else None
        if bar:
            bar.waiting_for = lambda: f'XLA compiles {what}, {self._clock() - started:.0f} s'
        else:
            self.note(f'XLA compiles {what} …')
        try:
            yield
        finally:
            if bar:
                bar.waiting_for = None
            self._pace.restart()
        self.note(f'XLA compiled {what} in {self._clock() - started:.1f} s')

    def epoch(
        self, epoch: int, first_step: int, num_steps: int, max_epochs: int | None = None, patience: int | None = None
    ) -> None:
        self.close()
        self._pace.begin_epoch(epoch, first_step, num_steps, max_epochs)
        self._head = self._headline(epoch, max_epochs, patience)
        self.progress = _Bar(
            lambda: f'{self._head}{self._pace.run_left()}', console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task('', total=num_steps, completed=first_step, status='')
        self.progress.start()

    def _headline(self, epoch: int, max_epochs: int | None, patience: int | None) -> str:
        head = f'epoch {epoch}' + (f' of at most {max_epochs}' if max_epochs else '')
        return head + (f', patience {patience}' if patience is not None else '')

    def step(self, loss: float, targets_per_second: float) -> None:
        self._pace.step()
        status = f'loss {loss:.4f}, {targets_per_second:,.0f} targets/s{self._pace.epoch_left()}'
        if self.progress is not None:
            self.progress.update(self.task, advance=1, status=status)
        if not self.console.is_terminal and self._clock() >= self._line_due:
            self._line_due = self._clock() + LINE_SECONDS
            pace = self._pace
            self._say(f'{self._head}: step {pace.done:,} of {pace.num_steps:,}, {status}{pace.run_left()}')

    def evaluation(self, record: dict[str, Any]) -> None:
        self.close()
        parts = [f'epoch {record["epoch"]:3d}  {record["kind"]:5s}']
        parts += [f'{name} {record[name]:.4f}' for name in METRICS]
        if 'epoch_loss' in record:
            parts.append(f'loss {record["epoch_loss"]:.4f}')
        if record.get('best'):
            parts.append('best')
        self.note('  '.join(parts))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def result(self, result: dict[str, Any], name: str) -> None:
        """The final table: the network `name`, popularity and the last-item transition table on the test split."""
        table = Table(title=f'{result["dataset"]}: test, best epoch {result["best_epoch"]} of {result["epochs"]}')
        table.add_column('')
        for metric in METRICS:
            table.add_column(metric, justify='right')
        rows: dict[str, dict[str, float]] = {network_name(name): result['test']}
        rows |= {other: result[other]['test'] for other in ('popularity', 'transition') if other in result}
        for label, metrics in rows.items():
            table.add_row(label, *(f'{metrics[metric]:.4f}' for metric in METRICS))
        # A table wider than a log file's assumed 80 columns must not be cut.
        self.console.print(table, soft_wrap=False, width=None if self.console.is_terminal else 100)
        self.note(
            f'{result["parameters"]:,} parameters, {result["train_seconds"]:.1f} s of training, '
            f'{result["targets/s"]:,.0f} targets/s, {result["tokens/s"]:,.0f} tokens/s, '
            f'packing fill {result["packing_fill"]:.1%}, {result["backend"]}'
        )


class OneOfMany(Terminal):
    """What is seen of a training that is one of many: its bar, or its line each minute, with its name and what it has
    reached. Notes and evaluations have no lines of their own."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock=clock)
        self._name, self._reached, self._best = name, '', ''

    def note(self, text: str) -> None:
        """Nothing."""

    def _headline(self, epoch: int, max_epochs: int | None, patience: int | None) -> str:
        return f'{self._name}: {super()._headline(epoch, max_epochs, patience)}{self._reached}'

    def evaluation(self, record: dict[str, Any]) -> None:
        self.close()
        if record['kind'] != 'valid':
            return
        value = f'{record["NDCG@10"]:.4f}'
        if record.get('best'):  # A training that goes on says nothing of its best before.
            self._best = f', best {value}'
        self._reached = f', validation NDCG@10 {value}{self._best}'


class _Bar(Progress):
    """A line of text above a bar.

    headline: makes the text. waiting_for: makes the status that is shown in place of the task's, None where it is not.
    """

    def __init__(self, headline: Callable[[], str], *, console: Console, disable: bool):
        self.headline = headline
        self.waiting_for: Callable[[], str] | None = None
        super().__init__(
            BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn('{task.fields[status]}'), console=console,
            transient=True, disable=disable, expand=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield Text(self.headline())
        if self.waiting_for is not None:
            yield Text(self.waiting_for())
        else:
            yield self.make_tasks_table(self.tasks)


class _Pace:
    """How fast steps and epochs go by, and so how long the rest takes; compilation does not count as a step's time."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._epoch_began: float | None = None  # of an epoch that begins with its first step
        self._epoch_seconds: float | None = None  # of the last whole epoch, its evaluation included
        self._epochs_begun = 0
        self.epoch, self.done, self.num_steps, self.max_epochs = 0, 0, 0, 0
        self.restart()

    def restart(self) -> None:
        """Time steps from now on."""
        self._since, self._timed = self._clock(), 0

    def begin_epoch(self, epoch: int, first_step: int, num_steps: int, max_epochs: int | None) -> None:
        now = self._clock()
        if self._epoch_began is not None:
            self._epoch_seconds = now - self._epoch_began
        self._epoch_began = now if first_step == 0 else None
        self._epochs_begun += 1
        self.epoch, self.done, self.num_steps, self.max_epochs = epoch, first_step, num_steps, max_epochs or 0
        self.restart()

    def step(self) -> None:
        self.done, self._timed = self.done + 1, self._timed + 1

    def epoch_left(self) -> str:
        """', 0:01:40 left', the time of the steps that are left of the epoch."""
        return f', {_clock_time(self._steps_left())} left'

    def run_left(self) -> str:
        """', the run at most 2:13:00', to the last epoch that is allowed; '' before the third epoch of a session."""
        if self._epochs_begun < 3 or self._epoch_seconds is None or not self.max_epochs:
            return ''
        seconds = self._steps_left() + (self.max_epochs - self.epoch) * self._epoch_seconds
        return f', the run at most {_clock_time(seconds)}'

    def _steps_left(self) -> float:
        seconds = (self._clock() - self._since) / self._timed if self._timed else 0.0
        return seconds * (self.num_steps - self.done)


def _clock_time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def shown_progress() -> Reporter:
    """A Terminal where a person looks on, at a terminal or in a notebook; elsewhere a reporter that says nothing."""
    console = Console()
    return Terminal() if console.is_terminal or console.is_jupyter else Reporter()
