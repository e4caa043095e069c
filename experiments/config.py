"""A run's whole configuration, changed from the command line by dotted keys."""
import dataclasses
import difflib
import importlib
import math

from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.train_config import TrainConfig

DATASETS = (
    'synthetic', 'kuairand', 'kuairand-1k', 'kuairand-27k', 'ml-1m', 'ml-100k', 'amazon-beauty', 'amazon-video-games',
    'interactions',
)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """What decides a run's result, beside the log itself."""

    dataset: str
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


SECTIONS = {'model': ModelConfig, 'data': DataConfig, 'train': TrainConfig}


def default_config(dataset: str) -> ExperimentConfig:
    """The configuration in experiments/configs for a data set's name; ConfigError names the nearest one."""
    if dataset not in DATASETS:
        raise ConfigError(f'--dataset={dataset} is unknown{_nearest(dataset, DATASETS)}. Known: {", ".join(DATASETS)}')
    return importlib.import_module(f'experiments.configs.{dataset.replace("-", "_")}').get_config()


def apply_overrides(config: ExperimentConfig, overrides: list[str]) -> ExperimentConfig:
    """config with 'section.key=value' settings applied; ConfigError names an unknown key's nearest or the type."""
    changes: dict[str, dict] = {section: {} for section in SECTIONS}
    types = {
        f'{section}.{field.name}': field.type for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)
    }
    for override in overrides:
        key, equals, text = override.partition('=')
        if not equals:
            raise ConfigError(f'--set={override}: write it as --set=key=value')
        if key not in types:
            raise ConfigError(f'--set={override}: there is no key {key!r}{_nearest(key, types)}')
        section, name = key.split('.')
        changes[section][name] = _parse(key, text, types[key])
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **c) for section, c in changes.items()}
    )


def _parse(key: str, text: str, kind: type):
    try:
        if kind is bool:
            return {'true': True, 'false': False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):  # config.json could not hold it
            raise ValueError
        return value
    except (KeyError, ValueError):
        name = {bool: 'true or false', int: 'a whole number', float: 'a number'}[kind]
        raise ConfigError(f'--set={key}={text}: {key} takes {name}, not {text!r}') from None


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f'; did you mean {close[0]!r}?' if close else ''


def to_dict(config: ExperimentConfig) -> dict:
    """The configuration as JSON-ready nested dicts."""
    return dataclasses.asdict(config)


def from_dict(stored: dict) -> ExperimentConfig:
    """Inverse of to_dict; ConfigError where a key is missing or unknown (written by another version)."""
    try:
        return ExperimentConfig(
            dataset=stored['dataset'], **{section: cls(**stored[section]) for section, cls in SECTIONS.items()}
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f'the stored config was written by another version of this project: {error}') from error


def differences(there: ExperimentConfig, here: ExperimentConfig) -> list[str]:
    """'key: value there, value here' for each setting that differs."""
    a, b = flat(there), flat(here)
    return [f'{key}: {a[key]} there, {b[key]} here' for key in a if a[key] != b[key]]


def flat(config: ExperimentConfig) -> dict:
    """{'section.key': value} of all settings."""
    flat = {'dataset': config.dataset}
    for section in SECTIONS:
        flat |= {f'{section}.{k}': v for k, v in dataclasses.asdict(getattr(config, section)).items()}
    return flat
