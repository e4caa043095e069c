"""The flag that names the folder of a training run."""
from absl import flags

from ssd4rec_jax.errors import ConfigError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a training run; a training takes runs/DATASET if not given.')


def required_workdir() -> str:
    """The flag's value; ConfigError if it is not given."""
    if not WORKDIR.value:
        raise ConfigError('give --workdir, the folder of a training run')
    return WORKDIR.value
