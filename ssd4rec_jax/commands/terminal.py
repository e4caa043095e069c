"""What a person at the terminal sees of a run."""
import contextlib
import sys
import time
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ssd4rec_jax.commands.output import Lenient, one_line
from ssd4rec_jax.reporter import Reporter

_NAMES = {'ssd4rec': 'SSD4Rec'}  # of networks, where they are written otherwise than in a setting
METRICS = ('HR@10', 'NDCG@10', 'MRR@10', 'HR@20', 'NDCG@20', 'MRR@20')


class Terminal(Reporter):
    """Progress bar with loss and speed, a line an evaluation, notes; plain lines where stdout is no terminal."""

    def __init__(self, quiet: bool = False):
        # A training goes on though nobody reads what it says any more.
        self.console = Console(file=cast(IO[str], Lenient(sys.stdout)), highlight=False, soft_wrap=True, quiet=quiet)
        self.progress = None

    def note(self, text):
        self.console.print('\n'.join(map(one_line, text.split('\n'))), markup=False)

    @contextlib.contextmanager
    def compiling(self, what):
        self.note(f'XLA compiles {what} …')
        started = time.monotonic()
        yield
        self.note(f'XLA compiled {what} in {time.monotonic() - started:.1f} s')

    def epoch(self, epoch, first_step, num_steps):
        self.close()
        self.progress = Progress(
            TextColumn(f'epoch {epoch}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[status]}'),
            TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task('', total=num_steps, completed=first_step, status='')
        self.progress.start()

    def step(self, loss, targets_per_second):
        status = f'loss {loss:.4f}  {targets_per_second:,.0f} targets/s'
        self.progress.update(self.task, advance=1, status=status)

    def evaluation(self, record):
        self.close()
        parts = [f'epoch {record["epoch"]:3d}  {record["kind"]:5s}']
        parts += [f'{name} {record[name]:.4f}' for name in METRICS]
        if 'epoch_loss' in record:
            parts.append(f'loss {record["epoch_loss"]:.4f}')
        if record.get('best'):
            parts.append('best')
        self.note('  '.join(parts))

    def close(self):
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def result(self, result: dict, name: str) -> None:
        """The final table: the network against popularity and the last-item transition table on the test split."""
        table = Table(title=f'{result["dataset"]}: test, best epoch {result["best_epoch"]} of {result["epochs"]}')
        table.add_column('')
        for name in METRICS:
            table.add_column(name, justify='right')
        baselines = {name: result[name]['test'] for name in ('popularity', 'transition') if name in result}
        for label, metrics in {_NAMES.get(name, name): result['test'], **baselines}.items():
            table.add_row(label, *(f'{metrics[name]:.4f}' for name in METRICS))
        # A table wider than a log file's assumed 80 columns must not be cut.
        self.console.print(table, soft_wrap=False, width=max(self.console.width, 100))
        self.note(
            f'{result["parameters"]:,} parameters, {result["train_seconds"]:.1f} s of training, '
            f'{result["targets/s"]:,.0f} targets/s, {result["tokens/s"]:,.0f} tokens/s, '
            f'packing fill {result["packing_fill"]:.1%}, {result["backend"]}'
        )
