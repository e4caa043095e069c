"""The settings for each data set, one file per data set, and which of them a run takes.

A file's get_config is the published configuration, where there is one. Where better settings were measured on such a
log, get_better has them. Any log, measured or not, can take settings that fit its size ('auto').
"""
import importlib
from collections.abc import Callable
from typing import Any

from ssd4rec_jax.config.plugs import nearest
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.sources import AMAZON_CATEGORY, OFFICIAL, Official
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.presets import amazon_category
from ssd4rec_jax.presets.auto import auto_config
from ssd4rec_jax.presets.families import SMALL, side_by_side

PRESETS = ('auto', 'best', 'small', 'published')
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


def preset_config(
    dataset: str, preset: str | None, prepared: Callable[[RunConfig], SequenceDataset], platform: Callable[[], str]
) -> tuple[RunConfig, str]:
    """(the settings of a preset for a data set, a sentence that says what they are).

    preset: see preset_name. prepared: the log that published settings prepare, and platform: jax.default_backend;
    'auto' alone asks for them. Raises ConfigError where nothing was measured.
    """
    preset = preset_name(dataset, preset)
    if preset == 'auto':
        published = default_config(dataset)
        return auto_config(published, prepared(published), platform=platform())
    return fixed_config(dataset, preset)


def preset_name(dataset: str, preset: str | None) -> str:
    """preset, one of PRESETS; for None the best that were measured for this data set, the published ones of 'synthetic'
    and of a registered data set, and 'auto' elsewhere. Raises ConfigError where the data set is unknown."""
    default_config(dataset)
    if preset is not None:
        return preset
    own = 'published' if dataset == 'synthetic' or dataset in _REGISTERED else 'auto'
    return 'best' if is_measured(dataset) else own


def is_measured(dataset: str) -> bool:
    """Whether the presets 'best' and 'small' are there for a data set."""
    return _of_file(dataset, 'get_better') is not None


def fixed_config(dataset: str, preset: str) -> tuple[RunConfig, str]:
    """preset_config for a preset that asks for no log: any but 'auto'."""
    better = _of_file(dataset, 'get_better')
    if preset == 'published':
        return default_config(dataset), 'settings: as published'
    if better is None:
        raise ConfigError(f'--preset={preset}: nothing was measured for --dataset={dataset}; take --preset=auto')
    if preset == 'small':
        return better(SMALL // 2), 'settings: those of --preset=best for one network, half as wide'
    best = side_by_side(better(SMALL))
    return best, 'settings: the best that were measured for such a log; --preset=published takes the paper\'s'


def default_config(dataset: str) -> RunConfig:
    """The published configuration of a data set; for an unknown one, ConfigError suggests the nearest name."""
    if AMAZON_CATEGORY.fullmatch(dataset):
        return amazon_category.get_config(dataset)
    if dataset not in DATASETS:
        raise ConfigError(f'--dataset={dataset} is unknown{nearest(dataset, DATASETS)} Known: {", ".join(DATASETS)}')
    if dataset in _REGISTERED:
        return _REGISTERED[dataset]()
    return _of_file(dataset, 'get_config')()


def _of_file(dataset: str, name: str) -> Any:
    """What the data set's file calls by this name; None where it has no file or no such name."""
    if dataset in _REGISTERED or AMAZON_CATEGORY.fullmatch(dataset):
        return None
    return getattr(importlib.import_module(f'ssd4rec_jax.presets.{dataset.replace("-", "_")}'), name, None)
