"""One JSON object a line → Batches.

polars parses blocks of lines; where it refuses one, the same block is read again line by line to find out which row is
wrong.
"""
import ast
import json
from collections.abc import Iterator

import polars as pl

from ssd4rec_jax.data.raw_file import BLOCK_BYTES, RawFile
from ssd4rec_jax.data.tables.batch import BadRow, Batch
from ssd4rec_jax.data.tables.encoding import as_utf8, blocks_of_lines
from ssd4rec_jax.data.tables.formats import FEATURE, JsonLinesFormat, columns_read
from ssd4rec_jax.errors import DataError


def json_batches(file: RawFile, format: JsonLinesFormat, block_bytes: int = BLOCK_BYTES) -> Iterator[Batch]:
    """All rows of a file; DataError where it is damaged or empty."""
    keys = columns_read(format)
    first_line, empty = 1, True
    for block in blocks_of_lines(as_utf8(file.chunks(), '', file), block_bytes):
        lines = block.rstrip(b'\r\n').split(b'\n') if block.strip(b'\r\n') else []
        if lines:
            empty = False
            yield _parsed(file, keys, block, lines, first_line)
        first_line += block.count(b'\n')
    if empty:
        raise DataError(f'{file}: is empty: give the whole log')


def _parsed(file: RawFile, keys: dict[str, str], block: bytes, lines: list[bytes], first_line: int) -> Batch:
    for time_type in (pl.Int64, pl.String):
        schema = {key: time_type if role == 'time' else pl.String for role, key in keys.items()}
        try:
            frame = pl.read_ndjson(block, schema=schema).select(**{role: pl.col(key) for role, key in keys.items()})
        except pl.exceptions.PolarsError:
            continue
        # What is no id, such as a list or true, comes as its text, and blank lines do not come at all.
        odd = any(frame[role].str.contains(r'^([\[{]|true$|false$)').any() for role in ('user', 'item'))
        needed = frame.select(role for role in keys if not role.startswith(FEATURE))
        if len(frame) == len(lines) and not odd and not needed.null_count().sum_horizontal()[0]:
            return Batch(
                frame, lambda row: f'{file}:{first_line + row}', lambda row: lines[row].decode(errors='replace'), []
            )
    return _line_by_line(file, keys, lines, first_line)


def _line_by_line(file: RawFile, keys: dict[str, str], lines: list[bytes], first_line: int) -> Batch:
    rows: list[dict[str, str | None]] = []
    numbers, broken = [], []
    for number, line in enumerate(lines, start=first_line):
        record = _record(line, keys)
        if isinstance(record, tuple):
            broken.append(BadRow(f'{file}:{number}', *record, line.decode(errors='replace')))
        else:
            rows.append(record)
            numbers.append(number)
    frame = pl.DataFrame(rows, schema={role: pl.String for role in keys})
    return Batch(
        frame, lambda row: f'{file}:{numbers[row]}',
        lambda row: lines[numbers[row] - first_line].decode(errors='replace'), broken,
    )


def _record(line: bytes, keys: dict[str, str]) -> dict[str, str | None] | tuple[str, str]:
    """The wanted values of a line as text, or what is wrong with it: (kind, reason)."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return 'not JSON', _not_json(line, error)
    if not isinstance(record, dict):
        return 'not JSON', 'not a JSON object'
    for role, key in keys.items():
        if role.startswith(FEATURE):  # a value may be missing
            continue
        if key not in record:
            return 'missing key', f'no key {key!r}; found {", ".join(record)}'
        if role != 'time' and isinstance(record[key], (list, dict, bool)):
            return 'no id', f'{key} is {json.dumps(record[key])[:80]}, not a text or an integer'
    return {role: _value(record.get(key)) for role, key in keys.items()}


def _value(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    return None if value is None else str(value)


def _not_json(line: bytes, error: Exception) -> str:
    try:
        if isinstance(ast.literal_eval(line.decode().strip()), dict):
            return (
                'a Python dict, not a JSON object: convert the file, for example with '
                "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(l))) for l in sys.stdin]' < OLD "
                "> NEW"
            )
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    return f'not a JSON object ({error})'
