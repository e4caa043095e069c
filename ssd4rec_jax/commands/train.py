"""Train SSD4Rec on a data set and rank its test items.

    python -m experiments.train                                  # synthetic, nothing to download
    python -m experiments.train --dataset=kuairand               # downloads, prepares, trains
    python -m experiments.train --dataset=amazon-beauty --data_dir=DIR --workdir=RUN --set=model.num_layers=2
    python -m experiments.train --dataset=kuairand --distributed   # on every host of a pod: see docs/pods.md

The same command again goes on where the run stopped, or prints its table if it is finished.
"""
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands import distributed
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.config.run import RunConfig, differences, flat
from ssd4rec_jax.commands.dataset_flags import DATA_DIR, DATASET, configured, prepared_dataset
from ssd4rec_jax.run.saved_run import read_config, write_config
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.runtime import StopSignals, backend_warning, enable_compilation_cache
from ssd4rec_jax.commands.terminal import Terminal
from ssd4rec_jax.data.summary import kept_lines
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import unused_path
from ssd4rec_jax.parallel.processes import agree, is_first, on_first, several, together
from ssd4rec_jax.train.trainer import Trainer
from ssd4rec_jax.run.folder import RunFolder

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/DATASET if not given.')
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
    path = Path(_WORKDIR.value or Path('runs') / DATASET.value).resolve()
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
    run_data = together(lambda: _agree_on_config(workdir, config))
    if run_data and (result := workdir.read_json(workdir.result)):
        together(lambda: _agree_on_data(workdir, config, run_data))
        terminal.note(f'{path} is finished:')
        terminal.result(result)
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
    ).open()
    on_first(lambda: _begin(workdir, config, prepared))
    try:
        result = trainer.run()
    finally:
        terminal.close()
    if result is None:
        terminal.note('stopped and saved: the same command goes on from here')
        return stop.exit_code
    terminal.result(result)
    return 0


def _begin(workdir: RunFolder, config: RunConfig, prepared: Path) -> None:
    workdir.result.unlink(missing_ok=True)  # of the config before --adopt_config
    write_config(workdir, config, prepared)


def _agree_on_config(workdir: RunFolder, config: RunConfig) -> Path | None:
    """Prepared data of the run of this config that the workdir holds, if any; ConfigError if it is another config's."""
    found = read_config(workdir)
    if found is None:
        if workdir.checkpoints.exists():
            raise ConfigError(f'{workdir.path} holds checkpoints but no config.json: name another --workdir')
        return None
    found_config, run_data = found
    different = differences(found_config, config)
    if different and not _ADOPT_CONFIG.value:
        raise ConfigError(
            f'{workdir.path} holds a run of another config ({"; ".join(different)}). Name another --workdir, '
            'set it aside with --restart, or go on with the new config with --adopt_config'
        )
    return None if different else run_data


def _agree_on_data(workdir: RunFolder, config: RunConfig, run_data: Path) -> None:
    """ConfigError if --data_dir names another log than a finished run's; a log that is gone is not missed."""
    if not DATA_DIR.value or not Path(DATA_DIR.value).exists():
        return
    _, prepared = prepared_dataset(config)
    if prepared.name != run_data.name:  # the name holds the fingerprint
        raise ConfigError(
            f'{workdir.path} holds a finished run on another log ({run_data}; this one is {prepared}): '
            'name another --workdir, or set it aside with --restart'
        )


def _move_aside(path: Path, terminal: Terminal) -> None:
    if not (path / 'config.json').exists():
        return  # no run lies there
    RunFolder(path).lock()  # refuses while another process trains there
    path.rename(aside := unused_path(path))
    terminal.note(f'moved the run that lay in {path} to {aside}')


if __name__ == '__main__':
    run(main)
