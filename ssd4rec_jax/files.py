"""Writing to disk so that a file is either the old one or the whole new one, and what to say when that fails."""
import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from absl import logging

from ssd4rec_jax.errors import UserError

_SEAL = 'seal'


class Unsealed(ValueError):
    """A JSON object holds no checksum of itself, because an older version wrote it."""


def seal(value: dict) -> dict:
    """The JSON object and a checksum of it, sha256 hex over its canonical text, under the key 'seal'."""
    return {**value, _SEAL: _digest(value)}


def unseal(value: dict) -> dict:
    """Inverse of seal; Unsealed where there is no checksum, ValueError where the object is not what was sealed."""
    content = {key: entry for key, entry in value.items() if key != _SEAL}
    if _SEAL not in value:
        raise Unsealed('it holds no checksum')
    if value[_SEAL] != _digest(content):
        raise ValueError('it is not what was written: its checksum differs')
    return content


def parse_json(text: bytes) -> dict:
    """The JSON object in a file's bytes; ValueError if they hold none. JSON has no NaN."""

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f'{number} is not a finite number')
        return value

    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError('its lists are nested too deeply') from error
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object')
    return value


def write_json(path: Path, value: dict) -> None:
    """Write a JSON object; the file is either the old one or the whole new one. UserError if it cannot be written."""
    text = json.dumps(value, indent=1, allow_nan=False) + '\n'
    replace_file(path, lambda out: out.write(text.encode()))


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a new file beside `path`, then rename it to `path`. UserError if it cannot be written."""
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        write_synced(partial, write)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {first_line(error)}') from error
    finally:  # Of whatever ended it early, nothing stays.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_synced(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill the file and the disk hold its bytes before this returns."""
    with open(path, 'wb') as out:
        write(out)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder before this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def swap_in(partial: Path, path: Path, replaced: Path) -> None:
    """Rename the finished folder `partial` to `path`; a folder that lies there is called `replaced` from then on."""
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process on this machine is in here for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning('%s: waiting for another process that writes there', folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the file `path`, which is made, against other processes and other calls; False where one of them holds it.

    The hold ends with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def unused_path(path: Path) -> Path:
    """path, or the first of path.1, path.2, ... that does not exist."""
    number, candidate = 0, path
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f'{path.name}.{number}')
    return candidate


def free_space(path: Path) -> str:
    """The free space of the disk that holds `path`, which need not exist yet: '1,234 MiB'."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return f'{shutil.disk_usage(existing).free / 2**20:,.0f} MiB'


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters, or the error's type where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
