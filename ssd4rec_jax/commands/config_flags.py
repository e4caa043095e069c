"""Flags that change settings: one by one, and all those of a file."""

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


def overridden(config: RunConfig, overrides: list[str] | None = None) -> RunConfig:
    """config with the settings of the file and then those of the command line. ConfigError names what cannot be set.

    overrides: those of the command line where the caller has taken some of them out; else all.
    """
    if CONFIG_FILE.value is not None:
        source = f'--config={CONFIG_FILE.value}: '
        config = apply_overrides(config, _overrides_of_file(CONFIG_FILE.value, source), source=source)
    return apply_overrides(config, SET.value if overrides is None else overrides)


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
