"""Official raw files and RecBole's .inter → Interactions.

polars parses blocks of lines; where it refuses one, or where a count does not come out, the same block is read again
line by line in plain Python to name the line and the value that are wrong.
"""
import csv
import dataclasses
import json
import re
from collections.abc import Callable

import numpy as np
import polars as pl

from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.errors import DataError

_NUMBER = re.compile(r'\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*', re.ASCII)
_INTEGER = re.compile(r'\s*[+-]?\d+\s*', re.ASCII)
_RECBOLE_TYPE = re.compile(r':(token|float)(_seq)?$')
_LAST_TIME = 2**63 - 1024  # the largest int64 that is a float64 too


@dataclasses.dataclass(frozen=True)
class TableFormat:
    """Lines of separated fields.

    separator: as written between two fields, one character or twice the same ('::').
    user, item, time: names of the columns to read.
    columns: names of all columns of a file without a header line; () where the first line names them (RecBole's
      'user_id:token' counts as 'user_id').
    numeric_ids: ids are integers; otherwise they are any text.
    quoted: fields may stand in double quotes.
    """

    separator: str
    user: str = 'user_id'
    item: str = 'item_id'
    time: str = 'timestamp'
    columns: tuple[str, ...] = ()
    numeric_ids: bool = False
    quoted: bool = False


@dataclasses.dataclass(frozen=True)
class JsonLinesFormat:
    """One JSON object a line; user, item and time are its keys, ids are text, times integers."""

    user: str
    item: str
    time: str


def read_interactions(files: tuple[RawFile, ...], format: TableFormat | JsonLinesFormat) -> Interactions:
    """All rows of the files, one file after another, duplicates kept; DataError names what is wrong and where."""
    frames = []
    for file in files:
        rows = _read_table(file, format) if isinstance(format, TableFormat) else _read_json_lines(file, format)
        if not any(map(len, rows)):
            raise DataError(f'{file}: holds no rows: give the whole log')
        frames += rows
    users, items, times = (_joined(frames, name) for name in ('user', 'item', 'time'))
    if times.dtype != np.int64 and np.all(times == np.floor(times)):
        times = times.astype(np.int64)
    return Interactions(users=users, items=items, times=times, source=', '.join(map(str, files)))


def _joined(frames: list[pl.DataFrame], name: str) -> np.ndarray:
    """One column of all frames, out of which it is taken: no more than one of a log's columns lies in memory twice."""
    return pl.concat(
        [frame.drop_in_place(name).to_frame() for frame in frames], how='vertical_relaxed', rechunk=True
    )[name].to_numpy()


def _narrow(frame: pl.DataFrame) -> pl.DataFrame:
    """Integer ids in 32 bits where they fit: a log of hundreds of millions of rows takes a third less."""
    fit = [
        name for name in ('user', 'item')
        if frame[name].dtype == pl.Int64 and frame[name].is_between(-2**31, 2**31 - 1).all()
    ]
    return frame.with_columns(pl.col(fit).cast(pl.Int32))


def _read_table(file: RawFile, format: TableFormat) -> list[pl.DataFrame]:
    columns, first_line, frames = format.columns, 1, []
    for block in file.line_blocks():
        if not columns:
            header, _, block = block.partition(b'\n')
            columns = _header(file, format, header)
            first_line += 1
        if block.strip(b'\r\n'):
            frames.append(_narrow(_parse_table_block(file, format, columns, block, first_line)))
        first_line += block.count(b'\n')
    if not columns:
        raise DataError(f'{file}: is empty: give the whole log')
    return frames


def _header(file: RawFile, format: TableFormat, line: bytes) -> tuple[str, ...]:
    """Column names of a header line; DataError if one that is to be read is not among them."""
    text = _decode(file, 1, line.removeprefix(b'\xef\xbb\xbf'))
    columns = tuple(_RECBOLE_TYPE.sub('', name.strip()) for name in _split(format, text))
    for what, name in (('user', format.user), ('item', format.item), ('time', format.time)):
        if columns.count(name) != 1:
            found = 'no' if name not in columns else 'more than one'
            raise DataError(
                f'{file}:1: {found} column {name!r} in the header; found {", ".join(columns)}: for a file with other '
                f'names use --dataset=interactions with --{what}_column (and --separator)'
            )
    return columns


def _parse_table_block(
    file: RawFile, format: TableFormat, columns: tuple[str, ...], block: bytes, first_line: int
) -> pl.DataFrame:
    block = block.rstrip(b'\r\n')
    # A separator of two characters is, to polars, one character with an empty field between the two.
    stride = len(format.separator)
    names = [str(k) for k in range((len(columns) - 1) * stride + 1)]
    wanted = {what: names[columns.index(getattr(format, what)) * stride] for what in ('user', 'item', 'time')}
    id_type = pl.Int64 if format.numeric_ids else pl.String

    def parse(time_type: pl.DataType) -> pl.DataFrame:
        types = {wanted['user']: id_type, wanted['item']: id_type, wanted['time']: time_type}
        return pl.scan_csv(
            block, has_header=False, separator=format.separator[0], quote_char='"' if format.quoted else None,
            schema={name: types.get(name, pl.String) for name in names},
        ).select(**{what: pl.col(name) for what, name in wanted.items()}).collect()

    frame, refusal = _parse_times(parse)
    bytes_ = np.frombuffer(block, np.uint8)
    lines = 1 + np.count_nonzero(bytes_ == ord('\n'))
    separators = np.count_nonzero(bytes_ == ord(format.separator[0]))
    if frame is None or len(frame) != lines or separators != lines * (len(names) - 1):
        _diagnose(file, first_line, block, lambda text: _check_fields(format, columns, _split(format, text)))
        # No line is wrong: separators inside quotes made the count differ.
        if frame is None or len(frame) != lines:
            last_line = first_line + lines - 1
            raise DataError(f'{file}: lines {first_line} to {last_line} cannot be parsed ({refusal or "quoting"})')
    return frame


def _read_json_lines(file: RawFile, format: JsonLinesFormat) -> list[pl.DataFrame]:
    keys = {'user': format.user, 'item': format.item, 'time': format.time}
    first_line, frames = 1, []
    for block in file.line_blocks():

        def parse(time_type: pl.DataType) -> pl.DataFrame:
            schema = {format.user: pl.String, format.item: pl.String, format.time: time_type}
            return pl.read_ndjson(block, schema=schema).select(**{what: pl.col(key) for what, key in keys.items()})

        frame, refusal = _parse_times(parse)
        if frame is None:
            _diagnose(file, first_line, block.rstrip(b'\r\n'), lambda text: _check_record(format, text))
            raise DataError(f'{file}: the block of lines from {first_line} on cannot be parsed ({refusal})')
        frames.append(frame)
        first_line += block.count(b'\n')
    if not frames:
        raise DataError(f'{file}: is empty: give the whole log')
    return frames


def _parse_times(parse: Callable[[pl.DataType], pl.DataFrame]) -> tuple[pl.DataFrame | None, str]:
    """A block's rows with numeric times, or None and why where a value is missing, refused or out of range.

    Times are parsed as integers; only where that fails are they read as text, so that '5.0' is exactly 5 too.
    """
    refusal = 'a value is missing or out of range'
    for time_type in (pl.Int64, pl.String):
        try:
            frame = parse(time_type)
            if time_type == pl.String:
                digits = pl.col('time').str.strip_chars().str.replace(r'\.0*$', '')
                exact = frame.select(digits.cast(pl.Int64, strict=False))['time']
                frame = frame.with_columns(exact if not exact.null_count() else pl.col('time').cast(pl.Float64))
        except pl.exceptions.PolarsError as error:
            refusal = str(error).splitlines()[0]
            continue
        if frame.null_count().sum_horizontal()[0] or not frame['time'].is_between(0, _LAST_TIME).all():
            return None, refusal
        return frame, ''
    return None, refusal


def _diagnose(file: RawFile, first_line: int, block: bytes, problem: Callable[[str], str | None]) -> None:
    """Raise DataError for the first line of a block in which `problem` finds one; return if there is none."""
    for number, line in enumerate(block.split(b'\n'), start=first_line):
        found = problem(_decode(file, number, line))
        if found:
            raise DataError(f'{file}:{number}: {found}: correct or remove the line')


def _decode(file: RawFile, number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b'\r').decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f'{file}:{number}: byte 0x{line[error.start]:02x} is not UTF-8 text: convert the file to UTF-8'
        ) from error


def _split(format: TableFormat, text: str) -> list[str]:
    if not format.quoted:
        return text.split(format.separator)
    return next(csv.reader([text], delimiter=format.separator), [])


def _check_fields(format: TableFormat, columns: tuple[str, ...], fields: list[str]) -> str | None:
    if len(fields) != len(columns):
        return f'{len(fields)} fields where {len(columns)} are expected ({format.separator.join(columns)})'
    row = dict(zip(columns, fields))
    for name in (format.user, format.item):
        if not row[name]:
            return f'{name} is empty'
        if format.numeric_ids and not (_INTEGER.fullmatch(row[name]) and abs(int(row[name])) < 2**63):
            return f'{name} is {row[name]!r}, not an integer'
    return _check_time(format.time, row[format.time])


def _check_record(format: JsonLinesFormat, text: str) -> str | None:
    try:
        record = json.loads(text)
    except ValueError as error:
        return f'not a JSON object ({error})'
    if not isinstance(record, dict):
        return 'not a JSON object'
    for name in (format.user, format.item, format.time):
        if name not in record:
            return f'no key {name!r}; found {", ".join(record)}'
    for name in (format.user, format.item):
        if not isinstance(record[name], str):
            return f'{name} is {record[name]!r}, not a text'
    return _check_time(format.time, str(record[format.time]))


def _check_time(name: str, text: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return f'{name} is {text!r}, not a number'
    if text.strip().startswith('-') and float(text) != 0:
        return f'{name} is {text!r}, negative'
    if float(text) > _LAST_TIME:
        return f'{name} is {text!r}, beyond a 64-bit integer'
    return None
