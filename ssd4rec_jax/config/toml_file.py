"""TOML files that flags name."""
import tomllib
from pathlib import Path
from typing import Any

from ssd4rec_jax.errors import ConfigError


def read_toml(path: Path | str, flag: str) -> dict[str, Any]:
    """What a TOML file holds; ConfigError, which begins with --flag=path, where it cannot be read or is none."""
    try:
        return tomllib.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'--{flag}={path}: cannot be read: {error.strerror or error}') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f'--{flag}={path}: is no TOML file: {error}') from error
