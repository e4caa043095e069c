"""The command that trains a run of a config."""
from typing import Any

from ssd4rec_jax.config.run import RunConfig, flat
from ssd4rec_jax.presets import default_config


def train_command(config: RunConfig) -> str:
    """The command line, with the published settings of the data set as its base; DIR stands for where the log lies."""
    base, own = flat(default_config(config.dataset)), flat(config)
    changes = [key for key in own if own[key] != base.get(key) and key != 'dataset']
    sets = ' '.join(f'--set={key}={_text(own[key])}' for key in changes)
    return f'ssd4rec train --dataset={config.dataset} --data_dir=DIR --preset=published {sets}'


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
