"""Tables of separated fields → Batches."""
import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl

from ssd4rec_jax.data.raw_file import BLOCK_BYTES, RawFile
from ssd4rec_jax.data.tables.batch import BadRow, Batch
from ssd4rec_jax.data.tables.encoding import as_utf8
from ssd4rec_jax.data.tables.formats import TableFormat, columns_read
from ssd4rec_jax.data.tables.names import plain_name
from ssd4rec_jax.data.tables.rows import RowBlock, fields_of, row_blocks
from ssd4rec_jax.errors import DataError


def text_batches(file: RawFile, format: TableFormat, block_bytes: int = BLOCK_BYTES) -> Iterator[Batch]:
    """All rows of a file; DataError where it is damaged, empty, or its header lacks a column."""
    columns, skip = format.columns, format.skipped_lines
    integers = True  # until a column of them has a value that is none
    chunks = as_utf8(file.chunks(), format.encoding, file)
    for block in row_blocks(chunks, format.separator, format.quoted, block_bytes):
        block = _without_first(block, skip)
        skip = 0
        if not columns and (len(block.lines) or block.broken):
            columns = _header(file, format, block)
            block = _without_first(block, 1)
        if len(block.lines) or block.broken:
            batch, integers = _parsed(file, format, columns, block, integers)
            yield batch
    if not columns:
        raise DataError(f'{file}: is empty: give the whole log')


def _without_first(block: RowBlock, rows: int) -> RowBlock:
    at = 0
    for _ in range(rows):
        at = block.data.index(b'\n', at) + 1
    return block._replace(data=block.data[at:], lines=block.lines[rows:]) if rows else block


def _header(file: RawFile, format: TableFormat, block: RowBlock) -> tuple[str, ...]:
    """Column names of the first row; DataError if one that is to be read is not among them."""
    if block.broken and (not len(block.lines) or block.broken[0].line < block.lines[0]):
        raise DataError(f'{file}:{block.broken[0].line}: the header cannot be read: {block.broken[0].reason}')
    first = block.data[:block.data.index(b'\n')]
    columns = tuple(map(plain_name, fields_of(first, block.separator, block.newline)))
    for role, name in columns_read(format).items():
        if columns.count(name) != 1:
            found = 'no' if name not in columns else 'more than one'
            raise DataError(
                f'{file}:{block.lines[0]}: {found} column {name!r} in the header; found {", ".join(columns)}: for a '
                'file '
                f'with other names use --dataset=interactions with --{role}_column (and --separator)'
            )
    return columns


def _parsed(
    file: RawFile, format: TableFormat, columns: tuple[str, ...], block: RowBlock, integers: bool
) -> tuple[Batch, bool]:
    """(the rows of a block, whether columns of integers had integers alone)."""
    good, broken = _judged(file, format, columns, block)
    starts = np.concatenate([[0], np.flatnonzero(np.frombuffer(block.data, np.uint8) == ord('\n')) + 1])
    if not good.all():
        kept = np.frombuffer(block.data, np.uint8)[np.repeat(good, np.diff(starts))]
        block = block._replace(data=kept.tobytes(), lines=block.lines[good])
        starts = np.concatenate([[0], np.cumsum(np.diff(starts)[good])])
    frame, integers = _frame(format, columns, block, integers)
    if len(frame) != len(block.lines):  # the rows are as many as polars is given lines
        raise DataError(
            f'{file}: {len(frame)} rows were read of {len(block.lines)} in the lines from {block.lines[0]} on: report '
            'this '
            'file to the authors of this program'
        )

    def text(row: int) -> str:
        return _text(block.data[starts[row]:starts[row + 1]], format, block)

    return Batch(frame, lambda row: f'{file}:{block.lines[row]}', text, broken), integers


def _judged(
    file: RawFile, format: TableFormat, columns: tuple[str, ...], block: RowBlock
) -> tuple[np.ndarray, list[BadRow]]:
    """(bool [rows], which rows can be split into the columns; those that cannot, the block's broken ones included)."""
    raw = np.frombuffer(block.data, np.uint8)
    ends = np.flatnonzero(raw == ord('\n'))
    fields = 1 + np.diff(np.searchsorted(np.flatnonzero(raw == block.separator[0]), ends), prepend=0)
    good = fields == len(columns)
    broken = {row.line: BadRow(f'{file}:{row.line}', 'quotes', row.reason, row.text) for row in block.broken}
    starts = np.concatenate([[0], ends[:-1] + 1])
    shown = {'space': ' '}.get(format.separator, format.separator).join(columns)
    for row in np.flatnonzero(~good).tolist():
        reason = f'{fields[row]} fields where {len(columns)} are expected ({shown})'
        text = _text(block.data[starts[row]:ends[row]], format, block)
        broken[int(block.lines[row])] = BadRow(f'{file}:{block.lines[row]}', 'number of fields', reason, text)
    if not block.data.isascii():
        for row, reason in _not_utf8(block.data, ends):
            good[row] = False
            text = block.data[starts[row]:ends[row]].decode(errors='replace')
            broken[int(block.lines[row])] = BadRow(f'{file}:{block.lines[row]}', 'not UTF-8', reason, text)
    return good, [broken[line] for line in sorted(broken)]


def _not_utf8(data: bytes, ends: np.ndarray) -> Iterator[tuple[int, str]]:
    """(row, what is wrong) of each row that is not UTF-8."""
    at = 0
    while True:
        try:
            memoryview(data)[at:].tobytes().decode()
            return
        except UnicodeDecodeError as error:
            wrong = at + error.start
            row = int(np.searchsorted(ends, wrong))
            yield row, (
                f'byte 0x{data[wrong]:02x} is not UTF-8 text: name the encoding, such as --encoding=latin-1, or '
                'convert the '
                'file to UTF-8'
            )
            at = int(ends[row]) + 1


def _frame(format: TableFormat, columns: tuple[str, ...], block: RowBlock, integers: bool) -> tuple[pl.DataFrame, bool]:
    """The columns to read, integers as such where possible, and whether that was possible."""
    wanted = {role: columns.index(name) for role, name in columns_read(format).items()}
    if not len(block.lines):
        return pl.DataFrame({role: pl.Series([], dtype=pl.String) for role in wanted}), integers
    names = [str(k) for k in range(len(columns))]
    numbers = {'user', 'item', 'time'} if format.numeric_ids else {'time'}
    for as_integers in (True, False)[not integers:]:
        types = {names[at]: pl.Int64 if as_integers and role in numbers else pl.String for role, at in wanted.items()}
        try:
            frame = pl.scan_csv(
                block.data, has_header=False, separator=block.separator.decode(), quote_char=None,
                schema={name: types.get(name, pl.String) for name in names},
            ).select(**{role: pl.col(names[at]) for role, at in wanted.items()}).collect()
        except pl.exceptions.PolarsError:
            if as_integers:
                continue
            raise
        texts = [role for role in wanted if frame[role].dtype == pl.String]
        return frame.with_columns(_unquoted(role, block) for role in texts), as_integers
    raise AssertionError('text is read as text')


def _unquoted(column: str, block: RowBlock) -> pl.Expr:
    """A column's fields as they were meant (rows.unquoted, for all rows at once)."""
    field = pl.col(column)
    if not block.newline:
        return field
    in_quotes = field.str.starts_with('"') & field.str.ends_with('"') & (field.str.len_bytes() > 1)
    inner = field.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.when(in_quotes).then(inner).otherwise(field).str.replace_all(block.newline.decode(), '\n', literal=True)


def _text(row: bytes, format: TableFormat, block: RowBlock) -> str:
    shown = ' ' if format.separator == 'space' else format.separator
    text = row.rstrip(b'\n').decode(errors='replace').replace(block.separator.decode(), shown)
    return text.replace(block.newline.decode(), '\n') if block.newline else text


def first_text(file: RawFile, encoding: str, size: int) -> str:
    """About the first `size` bytes of a file as text, for guessing how it is read."""
    for chunk in itertools.islice(as_utf8(file.chunks(), encoding, file), 1):
        return chunk[:size].decode(errors='replace')
    return ''
