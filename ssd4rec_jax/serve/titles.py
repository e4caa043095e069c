"""What items are called, from a file beside the log."""
from pathlib import Path

import polars as pl

from ssd4rec_jax.data.tables.names import guessed
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.files import first_line

_TITLES = 'title', 'name', 'product_title', 'item_name', 'caption', 'headline'
# MovieLens' files, which have no header: what separates their fields.
_MOVIELENS = {'u.item': '|', 'movies.dat': '::'}
_LONGEST = 200  # characters that are shown


def read_titles(path: Path) -> dict[str, str]:
    """{original id: title} of MovieLens' u.item, movies.dat or movies.csv, or of any csv, tsv or Parquet file.

    The columns are found by their usual names: item_id, movieId, asin ... and title or name. DataError where they are
    not, or where the file cannot be read.
    """
    try:
        if path.name in _MOVIELENS:
            lines = path.read_text('latin-1').splitlines()
            fields = [line.split(_MOVIELENS[path.name]) for line in lines]
            return {field[0]: field[1][:_LONGEST] for field in fields if len(field) > 1}
        if path.suffix == '.parquet':
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path, separator='\t' if path.suffix == '.tsv' else ',', infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f'--titles={path} cannot be read: {first_line(error)}') from error
    item = guessed(frame.columns, 'item')
    title = next((name for name in frame.columns if name.lower() in _TITLES), None)
    if item is None or title is None:
        raise DataError(
            f'--titles={path} has the columns {", ".join(frame.columns)}: one has to be named item_id and one title'
        )
    frame = frame.select(pl.col(item).cast(pl.String), pl.col(title).cast(pl.String)).drop_nulls()
    return {id_: text[:_LONGEST] for id_, text in frame.iter_rows()}
