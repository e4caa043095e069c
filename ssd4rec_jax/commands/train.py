"""Train SSD4Rec on a data set and rank its test items.

    ssd4rec train                             # synthetic, nothing to download
    ssd4rec train --dataset=kuairand          # downloads, prepares, trains
    ssd4rec train --dataset=interactions --data_dir=LOG.csv --workdir=RUN
    ssd4rec train --workdir=RUN               # goes on with the run in it
    ssd4rec train --workdir=RUN --set=train.max_epochs=+10   # ten epochs more
    ssd4rec train --dataset=kuairand --distributed   # on every host of a pod
    ssd4rec train --dataset=kuairand --final=RUN   # on all data, as long as RUN

The same command again goes on where the run stopped, or prints its table if it is finished.
"""
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands import distributed
from ssd4rec_jax.commands.backend import backend_warning
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.dataset_flags import DATA_DIR
from ssd4rec_jax.commands.entered_run import EnteredRun, entered_run, workdir_of_run
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.workdir_flag import WORKDIR
from ssd4rec_jax.config.run import to_dict
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.processes import is_first, several, together
from ssd4rec_jax.report.run_report import LivePage, write_run_report
from ssd4rec_jax.reporter import Reporter, Reporters, registered_reporters
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.show.tensorboard import TensorBoard
from ssd4rec_jax.show.terminal import Terminal
from ssd4rec_jax.train.final import final_config
from ssd4rec_jax.train.launch import Launch, launch
from ssd4rec_jax.train.stop_signals import StopSignals

_RESTART = flags.DEFINE_bool(
    'restart', False, 'Start anew: a run that lies in the workdir is moved aside to WORKDIR.1, WORKDIR.2, ...'
)
_ADOPT_CONFIG = flags.DEFINE_bool(
    'adopt_config', False, "Go on from the workdir's last checkpoint with this command's config though it differs."
)
_WITHOUT_HISTORIES = flags.DEFINE_bool(
    'without_histories', False,
    "Leave what each user did out of the run's folder model, which then answers histories alone.",
)
_REPORT = flags.DEFINE_bool(
    'report', False, 'Keep report.html in the workdir fresh after each evaluation, and complete it in the end.'
)
_TENSORBOARD = flags.DEFINE_bool(
    'tensorboard', False, "Write TensorBoard's events to the workdir's folder tensorboard."
)
_FINAL = flags.DEFINE_string(
    'final', None,
    'Folder of an earlier run on the same log: train on every interaction, with the epochs and followers it chose.',
)


def main() -> int:
    distributed.join()
    with distributed.failing_together():
        return _train()


def _entered(path: Path) -> EnteredRun:
    entered = entered_run(path, restart=_RESTART.value)
    if _FINAL.value is None:
        return entered
    return entered._replace(config=final_config(entered.config, _FINAL.value))


def _train() -> int:
    terminal = Terminal(quiet=not is_first())
    path = workdir_of_run()
    terminal.note(f'workdir: {path}' + ('' if WORKDIR.value else ' (by default; --workdir names another)'))
    entered = together(lambda: _entered(path))
    if entered.about:
        terminal.note(entered.about)
    if warning := backend_warning():
        terminal.note(f'warning: {warning}')
    enable_compilation_cache()
    stop: list[StopSignals] = []

    def watch_for_stop() -> Callable[[], bool]:
        stop.append(StopSignals())
        return stop[0].requested

    with no_folder_left(path):
        result = launch(
            entered.config, path, entered.dataset,
            Launch(
                _RESTART.value, _ADOPT_CONFIG.value or entered.more_epochs, MODEL_SHARDS.value,
                histories=not _WITHOUT_HISTORIES.value,
            ),
            # A log that is gone is not missed by a run that is finished.
            log_is_named=bool(DATA_DIR.value and Path(DATA_DIR.value).exists()),
            reporter=Reporters(terminal, *_onlookers(path, entered)),
            watch_for_stop=watch_for_stop,
        )
    if result is None:
        terminal.note('stopped and saved: the same command goes on from here')
        return stop[0].exit_code
    terminal.result(result, entered.config.model.name)
    if _REPORT.value and not several():  # what several processes share, one alone cannot evaluate
        log = Path(DATA_DIR.value) if DATA_DIR.value else None
        terminal.note(f'report: {write_run_report(RunFolder(path), log=log)}')
    return 0


def _onlookers(path: Path, entered: EnteredRun) -> list[Reporter]:
    """What hears of the run beside the terminal."""
    if not is_first():
        return []
    folder = RunFolder(path)
    wanted = (_REPORT.value, LivePage), (_TENSORBOARD.value, TensorBoard)
    return [*(make(folder) for is_wanted, make in wanted if is_wanted),
            *registered_reporters(path, to_dict(entered.config))]


@contextlib.contextmanager
def no_folder_left(path: Path) -> Iterator[None]:
    """Have what fails before anything was trained leave no new folder behind."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        # The first folder that holds something ends it, and so does another process that has begun in here.
        with contextlib.suppress(OSError, UserError):
            held = RunFolder(path)
            if path in new and is_first() and [file.name for file in path.glob('*')] == ['.lock']:
                held.lock()
                (path / '.lock').unlink()
            for folder in new:
                folder.rmdir()
        raise


if __name__ == '__main__':
    run(main)
