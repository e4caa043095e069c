"""Keep what a finished run says of itself as one small file, for docs/results.md.

    python -m experiments.record_run --workdir=RUN --output=benchmarks/results/quality/NAME.json [--note=...]

The file holds the command that trains it anew, the config, the machine, the metrics of both splits, and the validation
of every epoch.
"""
import datetime
from pathlib import Path
from typing import Any

from absl import flags

from pallas_kernels.bench.chip import chip_name
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.commands.workdir_flag import WORKDIR
from ssd4rec_jax.config.run import to_dict
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import write_json
from ssd4rec_jax.presets.command import train_command
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.run.saved_run import read_config

_NOTE = flags.DEFINE_string('note', '', 'What else is worth knowing of the run, such as what ran beside it.')
_KEPT = 'best_epoch', 'epochs', 'train_seconds', 'targets/s', 'parameters', 'packing_fill', 'versions'


def main() -> int:
    if not (WORKDIR.value and OUTPUT.value):
        raise ConfigError('name the finished run with --workdir and the file to write with --output')
    write_json(Path(OUTPUT.value), record(RunFolder(WORKDIR.value)))
    return 0


def record(folder: RunFolder) -> dict[str, Any]:
    """What is kept of a finished run; ConfigError where there is none."""
    found, result = read_config(folder), folder.read_result()
    if found is None or result is None:
        raise ConfigError(f'{folder.path} holds no finished run')
    config, _ = found
    curve = [row for row in MetricsLog(folder.metrics).read() if row.get('kind') == 'valid']
    return {
        'command': train_command(config), 'note': _NOTE.value, 'seed': config.train.seed, 'config': to_dict(config),
        'machine': chip_name(), 'backend': result['backend'],
        'date': datetime.date.today().isoformat(), 'valid': result['valid'], 'test': result['test'],
        **{key: result[key] for key in _KEPT},
        'curve': [{'epoch': row['epoch'], **{k: v for k, v in row.items() if '@' in k}} for row in curve],
    }


if __name__ == '__main__':
    run(main)
