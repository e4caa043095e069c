"""Tables in and out in the library that the caller uses: polars, pandas or pyarrow."""
from typing import Any

import polars as pl

from ssd4rec_jax.errors import UserError

LIBRARIES = 'polars', 'pandas', 'pyarrow'


def library_of(frame: Any) -> str:
    """'polars', 'pandas' or 'pyarrow', whichever a frame belongs to; 'polars' for anything else, such as a path."""
    module = type(frame).__module__.partition('.')[0]
    return module if module in LIBRARIES else 'polars'


def in_library(frame: pl.DataFrame, library: str) -> Any:
    """A polars frame as a frame of a library; UserError where that library is not installed."""
    if library == 'polars':
        return frame
    try:
        return frame.to_arrow() if library == 'pyarrow' else frame.to_pandas()
    except ModuleNotFoundError as error:
        raise UserError(f'a frame of {library} needs it and pyarrow: pip install "ssd4rec-jax[frames]"') from error
