"""Parquet files and frames of polars, pandas and pyarrow → Batches."""
import hashlib
from collections.abc import Iterator

import polars as pl

from ssd4rec_jax.data.tables.batch import Batch
from ssd4rec_jax.errors import DataError

ROWS_AT_ONCE = 1 << 20


def frame_batches(frame: pl.LazyFrame, columns: dict[str, str], where: str) -> Iterator[Batch]:
    """All rows of a frame or a Parquet file, ROWS_AT_ONCE at a time.

    columns: {'user', 'item', 'time': column}, 'time' '' where the rows stand in order of time. where: for messages.
    """
    wanted = frame.select(**{role: pl.col(name) for role, name in columns.items() if name})
    first = 0
    while True:
        try:
            rows = wanted.slice(first, ROWS_AT_ONCE).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f'{where}: cannot be read ({str(error).splitlines()[0][:200]})') from error
        if not len(rows):
            return
        yield _batch(rows, first, where)
        first += len(rows)


def _batch(rows: pl.DataFrame, first: int, where: str) -> Batch:
    return Batch(rows, lambda row: f'{where}: row {first + row + 1}', lambda row: str(rows.row(row, named=True)), [])


def column_names(frame: pl.LazyFrame, where: str) -> list[str]:
    """The names of a frame's columns; DataError where a Parquet file is damaged."""
    try:
        return frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        what = str(error).splitlines()[0][:200]
        raise DataError(f'{where}: cut short or damaged ({what}): get the file again') from error


def as_polars(frame: object) -> pl.LazyFrame:
    """A frame of polars, pandas or pyarrow as polars sees it, if possible without a copy; DataError for others."""
    if isinstance(frame, pl.LazyFrame):
        return frame
    if isinstance(frame, pl.DataFrame):
        return frame.lazy()
    module = type(frame).__module__.partition('.')[0]
    try:
        if module == 'pandas':
            return pl.from_pandas(frame).lazy()  # type: ignore[call-overload]  # pandas is optional
        if module == 'pyarrow':
            converted = pl.from_arrow(frame)
            if isinstance(converted, pl.DataFrame):
                return converted.lazy()
    except (ImportError, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise DataError(f'the frame cannot be read ({str(error).splitlines()[0][:200]})') from error
    raise DataError(f'a {type(frame).__name__} is no table: give a frame of polars or pandas, or a pyarrow.Table')


def hash_frame(frame: object) -> str:
    """sha256 hex over the names, types and values of a frame."""
    table = as_polars(frame)
    digest = hashlib.sha256(repr(list(table.collect_schema().items())).encode())
    first = 0
    while len(rows := table.slice(first, ROWS_AT_ONCE).collect()):
        digest.update(rows.write_ipc(None, compression='uncompressed').getvalue())
        first += len(rows)
    return digest.hexdigest()
