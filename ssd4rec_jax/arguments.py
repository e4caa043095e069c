"""What callers give to the public face: each check returns the value, or raises a UserError that names the argument."""
import numbers
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ssd4rec_jax.errors import UserError


def listed(values: Any, what: str) -> list[Any]:
    """A list; one text would be taken apart into its letters, and a mapping into its keys."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UserError(f'{what} is {values!r}; it must be a list of ids')
    return list(values)


def mapped(values: Any, what: str, of: str) -> dict[Any, Any]:
    """A dict that is not empty. of: what it maps from and to, in words."""
    if not isinstance(values, Mapping) or not values:
        raise UserError(f'{what} is {values!r}; it must be a dict of {of}')
    return dict(values)


def whole(value: Any, what: str, most: int | None = None) -> int:
    """A whole number from 1, of Python's or of NumPy's, that is not above `most`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < 1 or (most is not None and value > most):
        raise UserError(f'{what}={value!r} must be a whole number from 1' + (f' to {most}' if most is not None else ''))
    return int(value)


def truth(value: Any, what: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise UserError(f'{what}={value!r} must be True or False')
    return value


def one_of(value: Any, what: str, known: Collection[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in known:
        raise UserError(f'{what}={value!r} must be one of {", ".join(known)}')
    return value


def text(value: Any, what: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise UserError(f'{what}={value!r} must be a text')
    return value


def path(value: Any, what: str) -> Path:
    """The path of a folder."""
    if not isinstance(value, (str, os.PathLike)) or not value:
        raise UserError(f'{what}={value!r} must be the path of a folder')
    return Path(value)


def of_kind(value: Any, what: str, kind: type) -> Any:
    """An object of a class."""
    if not isinstance(value, kind):
        raise UserError(f'{what}={value!r} must be a {kind.__name__}')
    return value
