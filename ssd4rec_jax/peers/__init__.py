"""The networks that SSD4Rec is compared with, one file each, and the settings that they were published with.

`model.name=NAME` selects one; its file is imported when the first network of it is made.
"""
import tomllib
from importlib import resources

from ssd4rec_jax.config.plugs import nearest
from ssd4rec_jax.errors import ConfigError

_PUBLISHED = tomllib.loads(resources.files(__name__).joinpath('published.toml').read_text())
_SHARED = 'all'
_OF_LOG = {'ml-1m': 'movielens', 'ml-100k': 'movielens'}  # logs with a table of their own in those of networks
# The names of published settings. Most are those of networks; some networks were published with several.
NETWORKS = tuple(name for name in _PUBLISHED if name != _SHARED)


def published(name: str, dataset: str = '') -> dict[str, object]:
    """One of NETWORKS as it was published, {'model.name': 'sasrec', ...}: keys and values of --set.

    They go on top of --preset=published. dataset: the log that is trained on; where it is MovieLens and there are
    settings for it, these, and otherwise those for Amazon's logs. ConfigError where the name is unknown.
    """
    if name not in NETWORKS:
        raise ConfigError(f'{name} has no published settings{nearest(name, NETWORKS)} Known: {", ".join(NETWORKS)}')
    found = _PUBLISHED[_SHARED] | _PUBLISHED[name]
    of_logs = {key: found.pop(key) for key in set(_OF_LOG.values()) & found.keys()}
    return found | of_logs.get(_OF_LOG.get(dataset, ''), {})
