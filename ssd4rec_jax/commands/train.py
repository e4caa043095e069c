"""Train SSD4Rec on a data set and rank its test items.

    python -m experiments.train                                  # synthetic, nothing to download
    python -m experiments.train --dataset=kuairand               # downloads, prepares, trains
    python -m experiments.train --dataset=amazon-beauty --data_dir=DIR --workdir=RUN --set=model.num_layers=2
    python -m experiments.train --dataset=kuairand --distributed   # on every host of a pod: see docs/pods.md

The same command again goes on where the run stopped, or prints its table if it is finished.
"""
import dataclasses
from pathlib import Path

from absl import flags, logging

from ssd4rec_jax.commands import distributed
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.dataset_flags import DATA_DIR, DATASET, configured, prepared_dataset
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.runtime import StopSignals, backend_warning, enable_compilation_cache
from ssd4rec_jax.commands.terminal import Terminal
from ssd4rec_jax.commands.workdir_flag import WORKDIR
from ssd4rec_jax.config.run import RunConfig, differences, flat
from ssd4rec_jax.data.dataset import open_dataset
from ssd4rec_jax.data.summary import kept_lines
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.files import unused_path
from ssd4rec_jax.parallel.processes import agree, is_first, on_first, several, together
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import checkpoint_config, read_config, write_config
from ssd4rec_jax.train.trainer import Trainer

_RESTART = flags.DEFINE_bool(
    'restart', False, 'Start anew: a run that lies in the workdir is moved aside to WORKDIR.1, WORKDIR.2, ...'
)
_ADOPT_CONFIG = flags.DEFINE_bool(
    'adopt_config', False, "Go on from the workdir's last checkpoint with this command's config though it differs."
)


def main() -> int:
    distributed.join()
    with distributed.failing_together():
        return _train()


def _train() -> int:
    terminal = Terminal(quiet=not is_first())
    config = together(configured)
    path = Path(WORKDIR.value or Path('runs') / DATASET.value).resolve()
    # Before anything is done for which the processes have to be of one mind.
    agree({
        '--workdir': str(path), '--restart': _RESTART.value, '--adopt_config': _ADOPT_CONFIG.value,
        '--model_shards': MODEL_SHARDS.value, **flat(config),
    })
    if _RESTART.value:
        on_first(lambda: _move_aside(path, terminal))
    workdir = RunFolder(path)
    on_first(workdir.lock)
    together(workdir.check_seen)
    found = together(lambda: _found_run(workdir, config))
    if found and found.is_current and on_first(lambda: _is_finished(workdir, config, found, terminal)):
        terminal.note(f'{path} is finished:')
        terminal.result(workdir.read_result() or {})
        return 0
    if several():  # the first one prepares what the others open
        on_first(lambda: str(prepared_dataset(config)[1]))
    dataset, prepared = together(lambda: prepared_dataset(config))
    terminal.note('\n'.join([f'data: {prepared}', *kept_lines(dataset, prepared), f'workdir: {path}']))
    if warning := backend_warning():
        terminal.note(f'warning: {warning}')
    enable_compilation_cache()
    stop = StopSignals()
    trainer = Trainer(
        config, dataset, workdir,
        model_shards=MODEL_SHARDS.value, reporter=terminal, stop_requested=stop.requested,
        on_saved=lambda: _adopt(workdir, config, prepared),
    ).open()
    if found is None or found.is_current:  # a new config takes the run over with its first checkpoint
        on_first(lambda: write_config(workdir, config, prepared))
    try:
        result = trainer.run()
    finally:
        terminal.close()
    if result is None:
        terminal.note('stopped and saved: the same command goes on from here')
        return stop.exit_code
    terminal.result(result)
    return 0


@dataclasses.dataclass(frozen=True)
class _FoundRun:
    """The run that lies in the workdir.

    prepared: the folder of its data. is_current: whether config.json and the newest checkpoint hold this command's config.
    fingerprint: of the data that it was trained on, None before its first checkpoint.
    """

    prepared: Path
    is_current: bool
    fingerprint: str | None


def _found_run(workdir: RunFolder, config: RunConfig) -> _FoundRun | None:
    """The run that the workdir holds, if any; ConfigError if it is another config's and --adopt_config is not given.

    The newest checkpoint says what the run's config is: config.json follows it.
    """
    found = read_config(workdir)
    if found is None:
        if workdir.checkpoints.exists():
            raise ConfigError(f'{workdir.path} holds checkpoints but no config.json: name another --workdir')
        return None
    written, prepared = found
    newest = Checkpoints(workdir.checkpoints).newest_meta()
    own = checkpoint_config(newest, written.dataset) if newest else written
    different = differences(own, config)
    if different and not _ADOPT_CONFIG.value:
        raise ConfigError(
            f'{workdir.path} holds a run of another config ({"; ".join(different)}). Name another --workdir, '
            'set it aside with --restart, or go on with the new config with --adopt_config'
        )
    if not different and (odd := differences(written, own)):
        logging.warning(
            "%s is not the config of the newest checkpoint (%s): going on with the checkpoint's", workdir.config, '; '.join(odd)
        )
        if is_first():
            _adopt(workdir, config, prepared)
    return _FoundRun(prepared, not different, newest and newest['fingerprint'])


def _adopt(workdir: RunFolder, config: RunConfig, prepared: Path) -> None:
    """Make config.json follow a checkpoint of another config; the result of the config before is set aside first."""
    found = read_config(workdir)
    if found is None or differences(found[0], config):
        if workdir.result.exists():
            workdir.result.rename(unused_path(workdir.result.with_name(f'{workdir.result.name}.old')))
        write_config(workdir, config, prepared)


def _is_finished(workdir: RunFolder, config: RunConfig, found: _FoundRun, terminal: Terminal) -> bool:
    """Whether the run has its result; data of it that is gone or damaged is then prepared again.

    ConfigError if --data_dir names another log than the run's.
    """
    if workdir.read_result() is None:
        return False
    there = open_dataset(found.prepared)
    expected = found.fingerprint or (there and there.fingerprint)
    is_sound = there is not None and there.fingerprint == expected
    if is_sound and not (DATA_DIR.value and Path(DATA_DIR.value).exists()):  # a log that is gone is not missed
        return True
    try:
        dataset, prepared = prepared_dataset(config)
    except DataError as error:
        if is_sound:
            raise
        terminal.note(f'warning: the data of the run is no longer in {found.prepared} and cannot be prepared again ({error})')
        return True
    if expected and dataset.fingerprint != expected:
        raise ConfigError(
            f'{workdir.path} holds a finished run on another log ({found.prepared}; this one is {prepared}): '
            'name another --workdir, or set it aside with --restart'
        )
    if not is_sound:
        write_config(workdir, config, prepared)
        terminal.note(f'the data of the run was no longer in {found.prepared} and is prepared again: {prepared}')
    return True


def _move_aside(path: Path, terminal: Terminal) -> None:
    if not (path / 'config.json').exists():
        return  # no run lies there
    held = RunFolder(path)
    held.lock()  # refuses while another process trains there; held until the run has its new name
    path.rename(aside := unused_path(path))
    del held
    terminal.note(f'moved the run that lay in {path} to {aside}')


if __name__ == '__main__':
    run(main)
