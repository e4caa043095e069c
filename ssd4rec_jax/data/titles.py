"""Titles of items where a data folder has them: MovieLens' u.item, movies.dat and movies.csv."""
import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.errors import DataError


def _split_by(separator: str) -> Callable[[str], Iterator[list[str]]]:
    return lambda text: (line.split(separator) for line in text.splitlines())


# {file: (its encoding, text -> rows of an id, a title and more)}
_FILES: dict[str, tuple[str, Callable[[str], Iterator[list[str]]]]] = {
    'u.item': ('latin-1', _split_by('|')),
    'movies.dat': ('latin-1', _split_by('::')),
    'movies.csv': ('utf-8', lambda text: csv.reader(io.StringIO(text))),
}


def read_titles(place: Path) -> dict[str, str]:
    """{original id: title} by the first file of titles in a folder, in one right below it, or in a zip archive there.

    place: the folder, or a file in it. {} where there are none; a file that cannot be read is warned of.
    """
    folder = place if place.is_dir() else place.parent
    for file in _found(folder):
        encoding, rows = _FILES[Path(file.member or file.path.name).name]
        try:
            text = b''.join(file.chunks()).decode(encoding, 'replace')
            return {row[0].strip(): row[1].strip() for row in rows(text) if len(row) > 1 and row[1].strip()}
        except (DataError, csv.Error) as error:
            logging.warning('titles are left out: %s', error)
    return {}


def _found(folder: Path) -> Iterator[RawFile]:
    for name in _FILES:
        for path in (folder / name, *sorted(folder.glob(f'*/{name}'))):
            if path.is_file():
                yield RawFile(path)
    for archive in sorted(folder.glob('*.zip')):
        try:
            members = zipfile.ZipFile(archive).namelist()
        except (OSError, zipfile.BadZipFile):
            continue  # Whoever reads the log says what is wrong with its archive.
        yield from (RawFile(archive, name) for name in _FILES if any(f'/{m}'.endswith(f'/{name}') for m in members))
