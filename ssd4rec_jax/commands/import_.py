"""Read a checkpoint of the released PyTorch model, to answer with it.

    ssd4rec import --checkpoint=FILE.pth --data=FILE.inter --workdir=RUN

evaluate and recommend open RUN. The checkpoint is one that RecBole saved, a state dict alone, or weights.safetensors of
`ssd4rec export --format=torch`. Only its tensors are read; torch need not be installed, and nothing that the file says
is run. Which item a row of its table belongs to comes from the data, in RecBole's order of first appearance. Its sizes
come from its shapes, other settings from RecBole's config in it; --set says what neither does, and overrides the
config.
"""
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import overridden
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.export.released import import_released, read_checkpoint, settings_of
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.show.output import complain, write_stdout

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The file of the released model.')
_DATA = flags.DEFINE_string('data', None, 'The log that it was trained on, such as FILE.inter.')


def main() -> int:
    workdir = required_workdir()
    if not _CHECKPOINT.value or not _DATA.value:
        raise ConfigError('give --checkpoint, the file of the released model, and --data, the log it was trained on')
    checkpoint = read_checkpoint(Path(_CHECKPOINT.value))
    # RecBole keeps times as float32, which decides the order of what happened at nearly the same time.
    published = apply_overrides(default_config('interactions'), ['data.timestamp_precision=float32'])
    config, unsaid = settings_of(checkpoint, published)
    config = overridden(config)
    for name in unsaid:
        complain(f'the checkpoint does not say model.{name}: {getattr(config.model, name)} is taken')
    dataset = import_released(checkpoint, config, _DATA.value, Path(workdir))
    write_stdout(f'{workdir}: {dataset.num_users:,} users, {dataset.num_items:,} items\n')
    return 0


if __name__ == '__main__':
    run(main)
