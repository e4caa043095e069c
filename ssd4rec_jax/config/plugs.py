"""The names of networks and losses, each with the frozen dataclass that holds its settings.

The networks and losses themselves lie in higher rooms: `ssd4rec_jax.model.networks` and `ssd4rec_jax.train.losses`
register them together with their settings. So a configuration can be read without importing what it configures.
"""
import difflib
from collections.abc import Iterable
from typing import Any

from ssd4rec_jax.config.loss import GBCE, FullSoftmax, NoSettings, UniformSoftmax
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.errors import ConfigError

NETWORK_SETTINGS: dict[str, type] = {'ssd4rec': ModelConfig, **PEERS}
LOSS_SETTINGS: dict[str, type] = {
    'full': FullSoftmax, 'sampled': NoSettings, 'gbce': GBCE, 'uniform': UniformSoftmax,
}


def network_settings(name: str) -> type:
    """The settings class for a value of model.name; ConfigError where no such network is registered."""
    return _named('model.name', name, NETWORK_SETTINGS)


def loss_settings(name: str) -> type:
    """The settings class for a value of train.loss ('auto' has none); ConfigError where no such loss is registered."""
    return NoSettings if name == 'auto' else _named('train.loss', name, LOSS_SETTINGS)


def features_read(settings: Any) -> tuple[str, ...]:
    """The event features that a network reads: its settings name them in the field `features`, separated by commas."""
    return tuple(name.strip() for name in getattr(settings, 'features', '').split(',') if name.strip())


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the known word that a misspelt one resembles, or a full stop where none does."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean {close[0]!r}?' if close else '.'


def _named(key: str, name: Any, registered: dict[str, type]) -> type:
    if name not in registered:
        raise ConfigError(
            f'{key}={name} is unknown{nearest(str(name), registered)} Known: {", ".join(registered)}. '
            '--plug=MODULE imports a module that registers another'
        )
    return registered[name]
