"""The networks that SSD4Rec is compared with, one file each, and the settings that they were published with.

`model.name=NAME` selects one; its file is imported when the first network of it is made.
"""
import tomllib
from importlib import resources

from ssd4rec_jax.config.peers import PEERS
from ssd4rec_jax.config.plugs import nearest
from ssd4rec_jax.errors import ConfigError

NETWORKS = tuple(PEERS)


def published(name: str) -> dict[str, object]:
    """The published settings of one of NETWORKS, {'model.hidden_size': 64, ...}: keys and values of --set.

    They go on top of --preset=published. ConfigError where there is no such network.
    """
    tables = tomllib.loads(resources.files(__name__).joinpath('published.toml').read_text())
    if name not in tables:
        raise ConfigError(f'{name} has no published settings{nearest(name, tables)} Known: {", ".join(tables)}')
    return {**tables['all'], 'model.name': name, **tables[name]}
