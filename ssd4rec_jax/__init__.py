"""SSD4Rec in JAX: a recommender to hold, and the data, networks, training and commands that it is made of."""
import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssd4rec_jax.config.data import DataConfig
    from ssd4rec_jax.config.model import ModelConfig
    from ssd4rec_jax.config.run import RunConfig
    from ssd4rec_jax.config.train import TrainConfig
    from ssd4rec_jax.data.dataset import SequenceDataset
    from ssd4rec_jax.errors import UnknownIds, UserError
    from ssd4rec_jax.model.networks import register_network
    from ssd4rec_jax.presets import default_config, register_dataset
    from ssd4rec_jax.recommender import Recommender
    from ssd4rec_jax.train.losses import register_loss

# Public name: module. They are imported when they are asked for, so that `import ssd4rec_jax` starts neither JAX nor
# polars.
_PUBLIC = {
    'Recommender': 'recommender', 'RunConfig': 'config.run', 'ModelConfig': 'config.model', 'DataConfig': 'config.data',
    'TrainConfig': 'config.train', 'SequenceDataset': 'data.dataset', 'UserError': 'errors', 'UnknownIds': 'errors',
    'default_config': 'presets', 'register_dataset': 'presets', 'register_network': 'model.networks',
    'register_loss': 'train.losses',
}
__all__ = [
    'DataConfig', 'ModelConfig', 'Recommender', 'RunConfig', 'SequenceDataset', 'TrainConfig', 'UnknownIds',
    'UserError', 'default_config', 'register_dataset', 'register_loss', 'register_network',
]


def __getattr__(name: str) -> Any:
    if name == '__version__':
        return importlib.metadata.version('ssd4rec-jax')
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_PUBLIC[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, '__version__'])
