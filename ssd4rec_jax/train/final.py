"""The run that serves: fitted on every interaction, for as many epochs as an earlier run found best."""
import dataclasses
from pathlib import Path

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.run.folder import RunFolder


def final_config(config: RunConfig, earlier: str | Path) -> RunConfig:
    """`config` with nothing held out and the epochs and follower weight of the run in the folder `earlier`.

    ConfigError where that folder holds no finished run that held something out, or a damaged result of one.
    """
    result = RunFolder(earlier).result_of_earlier()
    if result is None:
        raise ConfigError(f'--final={earlier} holds no finished run (result.json): train one on the same log first')
    if str(result.get('protocol', '')).startswith('none:'):
        raise ConfigError(f'--final={earlier} held nothing out, so that no epoch is known to be best: name another')
    model = config.model
    # Without validation targets this run cannot choose it.
    if getattr(model, 'fit_followers', False) and 'follower_weight' in result:
        model = dataclasses.replace(model, follower_weight=float(result['follower_weight']), fit_followers=False)
    return dataclasses.replace(
        config, model=model, data=dataclasses.replace(config.data, split='none'),
        train=dataclasses.replace(config.train, max_epochs=int(result['best_epoch'])),
    )
