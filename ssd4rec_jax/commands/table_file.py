"""Tables written part by part to a file that appears under its name only when it is whole."""
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import polars as pl

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import first_line, replace_file

ENDINGS = '.parquet', '.csv', '.jsonl'


def check_table_file(flag: str, name: str) -> Path:
    """The path of a table that is to be written; UserError, before any work, where it cannot be."""
    path = Path(name).absolute()
    if path.suffix not in ENDINGS:
        raise UserError(f'{flag}={name}: the ending says the format, and it is none of {", ".join(ENDINGS)}')
    if path.is_dir():
        raise UserError(f'{flag}={name} is a folder: name a file')
    if not path.parent.is_dir():
        raise UserError(f'{flag}={name} cannot be written: there is no folder {path.parent}')
    if not os.access(path.parent, os.W_OK):
        raise UserError(f'{flag}={name} cannot be written: the folder {path.parent} is read-only')
    return path


def write_table(path: Path, frames: Iterable[pl.DataFrame]) -> None:
    """Write frames of one schema, of which there is at least one, as they come; one of them is in memory at a time.

    UserError where the disk takes no more. Whatever ends it early leaves the file as it was, or absent.
    """
    write = {'.parquet': _write_parquet, '.csv': _write_csv, '.jsonl': _write_json_lines}[path.suffix]
    replace_file(path, lambda out: write(out, frames, path))


def _write_csv(out: BinaryIO, frames: Iterable[pl.DataFrame], path: Path) -> None:
    for number, frame in enumerate(frames):
        frame.write_csv(out, include_header=number == 0)


def _write_json_lines(out: BinaryIO, frames: Iterable[pl.DataFrame], path: Path) -> None:
    for frame in frames:
        frame.write_ndjson(out)


def _write_parquet(out: BinaryIO, frames: Iterable[pl.DataFrame], path: Path) -> None:
    """A Parquet file is written at once from its parts, which wait beside it: polars does not append to one."""
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        parts = []
        for number, frame in enumerate(frames):
            parts.append(Path(folder) / f'{number:08d}.parquet')
            with _disk_errors():
                frame.write_parquet(parts[-1])
        with _disk_errors():
            pl.scan_parquet(parts).sink_parquet(out)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Polars says of a full disk that the file is out of specification."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise OSError(first_line(error)) from error
