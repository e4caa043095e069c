"""Flags that change settings: one by one, and all those of a file."""
from collections.abc import Callable

from absl import flags

from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.config.toml_file import read_toml
from ssd4rec_jax.errors import ConfigError

SET = flags.DEFINE_multi_string(
    'set', [], 'A setting, KEY=VALUE such as model.num_layers=1; `ssd4rec settings` lists all keys.'
)
CONFIG_FILE = flags.DEFINE_string(
    'config', None, 'TOML file of settings, in sections [model], [data], [train] and [loss]; --set comes after it.'
)


def overridden(config: RunConfig, wanted: Callable[[str], bool] = lambda override: True) -> RunConfig:
    """config with the settings of the file and then those of the command line. ConfigError names what cannot be set.

    wanted: whether to apply one, 'section.key=value'.
    """
    for source, overrides in given().items():
        config = apply_overrides(config, [one for one in overrides if wanted(one)], source=source)
    return config


def given() -> dict[str, list[str]]:
    """{what stands before them in an error's sentence: overrides}, those of the file and then of the command line."""
    name = CONFIG_FILE.value
    source = f'--config={name}: '
    return {**({} if name is None else {source: _overrides_of_file(name, source)}), '--set=': SET.value}


def _overrides_of_file(name: str, source: str) -> list[str]:
    overrides = []
    for section, settings in read_toml(name, 'config').items():
        if not isinstance(settings, dict):
            raise ConfigError(
                f'{source}{section} stands outside a section: write [model], [data], [train] or [loss] above it'
            )
        for key, value in settings.items():
            if isinstance(value, bool):
                value = str(value).lower()
            elif not isinstance(value, (str, int, float)):
                raise ConfigError(
                    f'{source}{section}.{key} is {value!r}: a setting is a number, a text, true or false'
                )
            overrides.append(f'{section}.{key}={value}')
    return overrides
