"""The whole configuration of a run, which is changed from the command line by dotted keys and stored as JSON."""
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, get_type_hints

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.loss import NoSettings
from ssd4rec_jax.config.meanings import meanings
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.plugs import LOSS_SETTINGS, NETWORK_SETTINGS, loss_settings, nearest, network_settings
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError

SECTIONS = 'model', 'data', 'train', 'loss'
# The keys whose value selects the settings class of a whole section: (section, the class for a value, all classes).
_NAMED_BY = {
    'model.name': ('model', network_settings, NETWORK_SETTINGS), 'train.loss': ('loss', loss_settings, LOSS_SETTINGS),
}
# What other tools call a setting, by the last part of its key: the key here.
ELSEWHERE = {
    **dict.fromkeys(('lr', 'eta', 'step_size'), 'train.learning_rate'),
    **dict.fromkeys(('batch_size', 'train_batch_size', 'bs', 'batch'), 'train.targets_per_step'),
    **dict.fromkeys(('epochs', 'num_epochs', 'n_epochs', 'epoch', 'max_epoch'), 'train.max_epochs'),
    **dict.fromkeys(('wd', 'l2', 'l2_reg'), 'train.weight_decay'),
    **dict.fromkeys(('stopping_step', 'early_stopping', 'early_stopping_patience'), 'train.patience'),
    **dict.fromkeys(('grad_clip', 'clip_grad_norm', 'max_grad_norm', 'gradient_clip_val'), 'train.clip_norm'),
    **dict.fromkeys(('neg_samples', 'num_neg', 'negatives', 'n_negatives'), 'train.num_negatives'),
    **dict.fromkeys(('random_state', 'random_seed'), 'train.seed'),
    **dict.fromkeys(
        ('dim', 'd_model', 'embedding_dim', 'embedding_size', 'emb_size', 'hidden_dim', 'hidden_units', 'factors'),
        'model.hidden_size',
    ),
    **dict.fromkeys(('dropout', 'dropout_rate', 'hidden_dropout_prob', 'drop_rate'), 'model.dropout_prob'),
    **dict.fromkeys(('layers', 'n_layers', 'num_blocks', 'num_hidden_layers', 'depth'), 'model.num_layers'),
    **dict.fromkeys(('head_dim', 'headdim'), 'model.headdim'),
    **dict.fromkeys(
        ('max_len', 'maxlen', 'max_length', 'max_seq_len', 'max_seq_length', 'max_item_list_length', 'seq_len'),
        'data.max_history',
    ),
    **dict.fromkeys(('k_core', 'min_user_inter', 'core'), 'data.min_interactions'),
}
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """A key's value in a configuration, its type, the default of its dataclass, and its meaning ('' if not said)."""

    value: Any
    kind: type
    default: Any
    meaning: str


def apply_overrides(config: RunConfig, overrides: list[str], *, source: str = '--set=') -> RunConfig:
    """config with overrides of the form 'section.key=value' applied.

    A new model.name or train.loss replaces the settings of its section by the defaults of the network or loss that it
    selects. source: what stands before an override in an error's sentence. Raises ConfigError for an unknown key, and
    names the one that is meant where that is plain, and for a value of the wrong type.
    """
    settings = [_key_and_text(override, source) for override in overrides]
    for key, name in settings:
        if key in _NAMED_BY:
            section, settings_class, _ = _NAMED_BY[key]
            cls = settings_class(name)
            if not isinstance(getattr(config, section), cls):
                config = dataclasses.replace(config, **{section: cls()})
    types = {key: kind for key, (_, kind) in _typed(config).items() if key != 'dataset'}
    changes: dict[str, dict] = {section: {} for section in SECTIONS}
    for key, text in settings:
        if key not in types:
            raise ConfigError(f'{source}{key}={text}: {_no_key(key, types)}')
        section, _, name = key.partition('.')
        changes[section][name] = _parse(key, text, types[key], source)
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **c) for section, c in changes.items()}
    )


def _no_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that there is not."""
    meant = ELSEWHERE.get(key.rpartition('.')[2].lower())
    if meant:
        return f'there is no key {key!r}; it is called {meant!r} here'
    section, _, name = key.partition('.')
    for plug, (of_plug, _, registered) in _NAMED_BY.items():
        having = [other for other, cls in registered.items() if name in {f.name for f in dataclasses.fields(cls)}]
        if having and section == of_plug:
            return f'the key {key!r} needs {plug}={" or ".join(having)} beside it'
    end = nearest(key, known)
    return f'there is no key {key!r}{end}' + (' `ssd4rec settings` lists all of them' if end == '.' else '')


def _key_and_text(override: str, source: str) -> tuple[str, str]:
    key, equals, text = override.partition('=')
    if not equals:
        raise ConfigError(f'{source}{override}: write it as {source}key=value')
    return key, text


def _parse(key: str, text: str, kind: type, source: str) -> Any:
    try:
        if kind is bool:
            return {'true': True, 'false': False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):  # JSON cannot represent it, so config.json could not hold it.
            raise ValueError
        return value
    except (KeyError, ValueError):
        raise ConfigError(f'{source}{key}={text}: {key} takes {_KINDS[kind]}, not {text!r}') from None


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


def described(config: RunConfig) -> dict[str, Setting]:
    """All settings that can be changed, as {'section.key': Setting}."""
    found = {}
    for key, (value, kind) in _typed(config).items():
        section, _, name = key.partition('.')
        if name:
            settings = type(getattr(config, section))
            field = next(field for field in dataclasses.fields(settings) if field.name == name)
            found[key] = Setting(value, kind, field.default, meanings(settings).get(name, ''))
    return found


def flat(config: RunConfig) -> dict[str, Any]:
    """All settings as {'section.key': value}."""
    return {key: value for key, (value, _) in _typed(config).items()}
