"""Titles of items: from MovieLens' files where a data folder has them, or from a table of one's own."""
import csv
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
from absl import logging

from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.tables.names import guessed
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.files import first_line


def _split_by(separator: str) -> Callable[[str], Iterator[list[str]]]:
    return lambda text: (line.split(separator) for line in text.splitlines())


# {file: (its encoding, text -> rows of an id, a title and more)}
_FILES: dict[str, tuple[str, Callable[[str], Iterator[list[str]]]]] = {
    'u.item': ('latin-1', _split_by('|')),
    'movies.dat': ('latin-1', _split_by('::')),
    # The one file with a header.
    'movies.csv': ('utf-8', lambda text: itertools.islice(csv.reader(io.StringIO(text)), 1, None)),
}


_TITLES = 'title', 'name', 'product_title', 'item_name', 'caption', 'headline'


def titles_of(path: Path) -> dict[str, str]:
    """{original id: title} of a file of MovieLens, or of a csv, tsv or Parquet file with a column of each.

    The columns are found by their usual names: item_id, movieId, asin ... and title or name. DataError where they are
    not, or where the file cannot be read.
    """
    if path.name in _FILES:
        return _movielens(RawFile(path))
    try:
        if path.suffix == '.parquet':
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path, separator='\t' if path.suffix == '.tsv' else ',', infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f'{path} cannot be read: {first_line(error)}') from error
    item = guessed(frame.columns, 'item')
    title = next((name for name in frame.columns if name.lower() in _TITLES), None)
    if item is None or title is None:
        raise DataError(
            f'{path} has the columns {", ".join(frame.columns)}: one has to be named item_id and one title'
        )
    frame = frame.select(pl.col(item).cast(pl.String), pl.col(title).cast(pl.String)).drop_nulls()
    return dict(frame.iter_rows())


def titles_beside(place: Path) -> dict[str, str]:
    """{original id: title} by the first file of titles in a folder, in one right below it, or in a zip archive there.

    place: the folder, or a file in it. {} where there are none; a file that cannot be read is warned of.
    """
    folder = place if place.is_dir() else place.parent
    for file in _found(folder):
        try:
            return _movielens(file)
        except DataError as error:
            logging.warning('titles are left out: %s', error)
    return {}


def _movielens(file: RawFile) -> dict[str, str]:
    encoding, rows = _FILES[Path(file.member or file.path.name).name]
    text = b''.join(file.chunks()).decode(encoding, 'replace')
    try:
        return {row[0].strip(): row[1].strip() for row in rows(text) if len(row) > 1 and row[1].strip()}
    except csv.Error as error:
        raise DataError(f'{file.path} cannot be read: {error}') from error


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
