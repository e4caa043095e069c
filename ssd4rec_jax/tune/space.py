"""What a search may try: a TOML file that names settings and their values."""
from pathlib import Path
from typing import Any, NamedTuple

from ssd4rec_jax.config.run import RunConfig, apply_overrides, flat
from ssd4rec_jax.config.toml_file import read_toml
from ssd4rec_jax.errors import ConfigError

DEFAULT = Path(__file__).with_name('space.toml')


class Numbers(NamedTuple):
    """Numbers from low to high, drawn evenly or, with log, evenly by their logarithms; whole ones where low is."""

    low: float
    high: float
    log: bool = False


Space = dict[str, Numbers | list]


def read_space(path: Path, config: RunConfig) -> Space:
    """{setting: what may be tried} from a TOML file with the sections of a configuration.

    config: the configuration whose settings are changed. ConfigError names what it does not have or cannot take.
    """
    space: Space = {}
    for section, settings in read_toml(path, 'space').items():
        for name, tried in settings.items() if isinstance(settings, dict) else ():
            space[f'{section}.{name}'] = _tried(f'--space={path}: {section}.{name}', tried)
    if not space:
        raise ConfigError(f'--space={path}: names no setting: write [model], [data] or [train], and settings below')
    for key, choice in space.items():
        for value in choice if isinstance(choice, list) else (choice.low, choice.high):
            apply_overrides(config, [override(key, value)], source=f'--space={path}: ')
    return space


def _tried(where: str, tried: Any) -> Numbers | list:
    if isinstance(tried, list) and tried:
        return tried
    if isinstance(tried, dict) and {'low', 'high'} <= set(tried) <= {'low', 'high', 'log'}:
        numbers = Numbers(**tried)
        if numbers.low < numbers.high and (numbers.low > 0 or not numbers.log):
            return numbers
        if numbers.low >= numbers.high:
            raise ConfigError(f'{where} = {tried!r}: low must be below high')
    raise ConfigError(
        f'{where} = {tried!r}: write a list of values, or {{low = 0.1, high = 0.5}} with log = true for a logarithmic '
        'scale above 0'
    )


def override(key: str, value: Any) -> str:
    """The text 'key=value' of a setting, as --set takes it."""
    return f'{key}={str(value).lower() if isinstance(value, bool) else value}'


def as_toml(config: RunConfig) -> str:
    """All settings of a configuration, as --config reads them."""
    lines, before = [], ''
    for key, value in flat(config).items():
        section, _, name = key.partition('.')
        if name:
            if section != before:
                lines += ['', f'[{section}]'] if before else [f'[{section}]']
                before = section
            lines.append(f'{name} = {_toml(value)}')
    return '\n'.join(lines) + '\n'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else _quoted(value)


def _quoted(text: str) -> str:
    escaped = text.replace('\\', '\\\\').replace('"', '\\"')
    return f'"{escaped}"'


