"""Train SSD4Rec on a data set and rank its test items.

    python -m experiments.train                                  # synthetic, nothing to download
    python -m experiments.train --dataset=kuairand               # downloads, prepares, trains
    python -m experiments.train --dataset=amazon-beauty --data_dir=DIR --workdir=RUN --set=model.num_layers=2
    python -m experiments.train --dataset=kuairand --distributed   # on every host of a pod: see docs/pods.md
    python -m experiments.train --dataset=kuairand --final=RUN --workdir=LIVE   # on everything, for RUN's best epochs

The same command again goes on where the run stopped, or prints its table if it is finished.
"""
from collections.abc import Callable
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands import distributed
from ssd4rec_jax.commands.backend import backend_warning
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.dataset_flags import DATA_DIR, DATASET, configured, prepared_dataset
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.terminal import Terminal
from ssd4rec_jax.commands.workdir_flag import WORKDIR
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.processes import is_first, together
from ssd4rec_jax.train.final import final_config
from ssd4rec_jax.train.launch import Launch, launch
from ssd4rec_jax.train.stop_signals import StopSignals

_RESTART = flags.DEFINE_bool(
    'restart', False, 'Start anew: a run that lies in the workdir is moved aside to WORKDIR.1, WORKDIR.2, ...'
)
_ADOPT_CONFIG = flags.DEFINE_bool(
    'adopt_config', False, "Go on from the workdir's last checkpoint with this command's config though it differs."
)


_FINAL = flags.DEFINE_string(
    'final', None, 'Folder of an earlier run on the same log: train on every interaction, for the epochs it found best.'
)


def main() -> int:
    distributed.join()
    with distributed.failing_together():
        return _train()


def _config() -> RunConfig:
    return configured() if _FINAL.value is None else final_config(configured(), _FINAL.value)


def _train() -> int:
    terminal = Terminal(quiet=not is_first())
    config = together(_config)
    if warning := backend_warning():
        terminal.note(f'warning: {warning}')
    enable_compilation_cache()
    stop: list[StopSignals] = []

    def watch_for_stop() -> Callable[[], bool]:
        stop.append(StopSignals())
        return stop[0].requested

    result = launch(
        config, Path(WORKDIR.value or Path('runs') / DATASET.value).resolve(), lambda: prepared_dataset(config),
        Launch(_RESTART.value, _ADOPT_CONFIG.value, MODEL_SHARDS.value),
        # A log that is gone is not missed by a run that is finished.
        log_is_named=bool(DATA_DIR.value and Path(DATA_DIR.value).exists()), reporter=terminal,
        watch_for_stop=watch_for_stop,
    )
    if result is None:
        terminal.note('stopped and saved: the same command goes on from here')
        return stop[0].exit_code
    terminal.result(result)
    return 0


if __name__ == '__main__':
    run(main)
