"""The whole configuration of a run, which is changed from the command line by dotted keys and stored as JSON."""
import dataclasses
import math
from typing import Any, get_type_hints

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.plugs import NoSettings, loss_settings, nearest, network_settings
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError

SECTIONS = 'model', 'data', 'train', 'loss'
# The keys whose value selects the settings class of a whole section.
_NAMED_BY = {'model.name': ('model', network_settings), 'train.loss': ('loss', loss_settings)}
_KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number'}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a run, except for the log itself.

    model: the settings of the network that model.name selects (ModelConfig for 'ssd4rec').
    loss: the settings of the loss that train.loss selects; the built-in losses have none.
    """

    dataset: str
    model: Any = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    loss: Any = NoSettings()


def apply_overrides(config: RunConfig, overrides: list[str]) -> RunConfig:
    """config with overrides of the form 'section.key=value' applied.

    A new model.name or train.loss replaces the settings of its section by the defaults of the network or loss that it
    selects. Raises ConfigError for an unknown key (and suggests the nearest one) and for a value of the wrong type.
    """
    settings = [_key_and_text(override) for override in overrides]
    for key, name in settings:
        if key in _NAMED_BY:
            section, settings_class = _NAMED_BY[key]
            cls = settings_class(name)
            if not isinstance(getattr(config, section), cls):
                config = dataclasses.replace(config, **{section: cls()})
    types = {key: kind for key, (_, kind) in _typed(config).items() if key != 'dataset'}
    changes: dict[str, dict] = {section: {} for section in SECTIONS}
    for key, text in settings:
        if key not in types:
            raise ConfigError(f'--set={key}={text}: there is no key {key!r}{nearest(key, types)}')
        section, _, name = key.partition('.')
        changes[section][name] = _parse(key, text, types[key])
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **c) for section, c in changes.items()}
    )


def _key_and_text(override: str) -> tuple[str, str]:
    key, equals, text = override.partition('=')
    if not equals:
        raise ConfigError(f'--set={override}: write it as --set=key=value')
    return key, text


def _parse(key: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {'true': True, 'false': False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):  # JSON cannot represent it, so config.json could not hold it.
            raise ValueError
        return value
    except (KeyError, ValueError):
        raise ConfigError(f'--set={key}={text}: {key} takes {_KINDS[kind]}, not {text!r}') from None


def to_dict(config: RunConfig) -> dict:
    """The configuration as nested dicts that json.dumps accepts."""
    return dataclasses.asdict(config)


def from_dict(stored: dict) -> RunConfig:
    """The inverse of to_dict. It also reads what versions before 0.2 stored: no model.name and no section loss.

    Raises ConfigError where a key is missing or unknown, or where a value has the wrong type.
    """
    try:
        model, train = {**stored['model']}, TrainConfig(**stored['train'])  # unlike dict(), refuses a list
        model_class, loss_class = network_settings(model.get('name', 'ssd4rec')), loss_settings(train.loss)
        config = RunConfig(
            dataset=stored['dataset'], model=model_class(**model), data=DataConfig(**stored['data']), train=train,
            loss=loss_class(**stored.get('loss', {})),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f'the stored config was written by another version of this project: {error}') from error
    for key, (value, kind) in _typed(config).items():
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f'the stored config is damaged: {key} is {value!r}, not {_KINDS.get(kind, "a text")}')
    return config


def _typed(config: RunConfig) -> dict[str, tuple[Any, type]]:
    typed: dict[str, tuple[Any, type]] = {'dataset': (config.dataset, str)}
    for section in SECTIONS:
        settings = getattr(config, section)
        types = get_type_hints(type(settings))
        for field in dataclasses.fields(settings):
            typed[f'{section}.{field.name}'] = getattr(settings, field.name), types[field.name]
    return typed


def differences(there: RunConfig, here: RunConfig) -> list[str]:
    """A text 'key: value there, value here' for each setting in which the two configurations differ."""
    a, b = flat(there), flat(here)
    return [f'{key}: {a.get(key)} there, {b.get(key)} here' for key in {**a, **b} if a.get(key) != b.get(key)]


def flat(config: RunConfig) -> dict[str, Any]:
    """All settings as {'section.key': value}."""
    return {key: value for key, (value, _) in _typed(config).items()}
