"""Train SSD4Rec on a data set and rank its test items.

    python -m experiments.train                                  # synthetic, nothing to download
    python -m experiments.train --dataset=kuairand               # downloads, prepares, trains
    python -m experiments.train --dataset=amazon-beauty --data_dir=DIR --workdir=RUN --set=model.num_layers=2

The same command again goes on where the run stopped, or prints its table if it is finished.
"""
from pathlib import Path

from absl import flags

from experiments.cli import run
from experiments.config import ExperimentConfig, differences
from experiments.dataset_flags import DATASET, configured, prepared_dataset
from experiments.finished_run import read_config, write_config
from experiments.runtime import StopSignals, backend_warning, enable_compilation_cache
from experiments.terminal import Terminal
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.trainer import Trainer
from ssd4rec_jax.workdir import Workdir

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/DATASET if not given.')
_RESTART = flags.DEFINE_bool(
    'restart', False, 'Start anew: a run that lies in the workdir is moved aside to WORKDIR.1, WORKDIR.2, ...'
)
_ADOPT_CONFIG = flags.DEFINE_bool(
    'adopt_config', False, "Go on from the workdir's last checkpoint with this command's config though it differs."
)


def main() -> int:
    terminal = Terminal()
    stop = StopSignals()
    config = configured()
    path = Path(_WORKDIR.value or Path('runs') / DATASET.value)
    if _RESTART.value:
        _move_aside(path, terminal)
    workdir = Workdir(path)
    workdir.lock()
    same = _agree_on_config(workdir, config)
    if same and (result := workdir.read_json(workdir.result)):
        terminal.note(f'{path} is finished:')
        terminal.result(result)
        return 0
    dataset, prepared = prepared_dataset(config)
    terminal.note(f'data: {prepared}\nworkdir: {path.resolve()}')
    if warning := backend_warning():
        terminal.note(f'warning: {warning}')
    enable_compilation_cache()
    trainer = Trainer(
        config.model, config.data, config.train, dataset, workdir,
        reporter=terminal, stop_requested=stop.requested,
    )
    write_config(workdir, config, prepared)
    try:
        result = trainer.run()
    finally:
        terminal.close()
    if result is None:
        terminal.note('stopped and saved: the same command goes on from here')
        return stop.exit_code
    terminal.result(result)
    return 0


def _agree_on_config(workdir: Workdir, config: ExperimentConfig) -> bool:
    """True if the workdir holds a run of this config; ConfigError if it holds another one's."""
    found = read_config(workdir)
    if found is None:
        if workdir.checkpoints.exists():
            raise ConfigError(f'{workdir.path} holds checkpoints but no config.json: name another --workdir')
        return False
    different = differences(found[0], config)
    if different and not _ADOPT_CONFIG.value:
        raise ConfigError(
            f'{workdir.path} holds a run of another config ({"; ".join(different)}). Name another --workdir, '
            'set it aside with --restart, or go on with the new config with --adopt_config'
        )
    return not different


def _move_aside(path: Path, terminal: Terminal) -> None:
    if not path.exists():
        return
    Workdir(path).lock()  # refuses while another process trains there
    number = 1
    while (aside := path.with_name(f'{path.name}.{number}')).exists():
        number += 1
    path.rename(aside)
    terminal.note(f'moved the run that lay in {path} to {aside}')


if __name__ == '__main__':
    run(main)
