"""The settings for each data set, one file per data set: the published configuration where there is one."""
import importlib
from collections.abc import Callable

from ssd4rec_jax.config.plugs import nearest
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.sources import AMAZON_CATEGORY, OFFICIAL, Official
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import amazon_category

DATASETS = ['synthetic', *OFFICIAL, 'interactions']
_REGISTERED: dict[str, Callable[[], RunConfig]] = {}


def register_dataset(name: str, official: Official, settings: Callable[[], RunConfig]) -> None:
    """Make a data set available under --dataset=name.

    official: where its log lies and how it is read. settings: returns the configuration that it is trained with.
    """
    OFFICIAL[name] = official
    _REGISTERED[name] = settings
    if name not in DATASETS:
        DATASETS.insert(-1, name)


def default_config(dataset: str) -> RunConfig:
    """The configuration of a data set; for an unknown one, ConfigError suggests the nearest name."""
    if AMAZON_CATEGORY.fullmatch(dataset):
        return amazon_category.get_config(dataset)
    if dataset not in DATASETS:
        raise ConfigError(f'--dataset={dataset} is unknown{nearest(dataset, DATASETS)} Known: {", ".join(DATASETS)}')
    if dataset in _REGISTERED:
        return _REGISTERED[dataset]()
    return importlib.import_module(f'ssd4rec_jax.presets.{dataset.replace("-", "_")}').get_config()
