"""Readers on random texts against a model in plain Python: the same rows, the same bad lines, no foreign exception.

SSD4REC_FUZZ=100000 python -m pytest tests/data/test_fuzz.py tries more inputs.
"""
import json
import os
import re
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.log import BadRowPolicy
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.readers import read_interactions
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.data.tables.formats import JsonLinesFormat, TableFormat, TableOptions
from ssd4rec_jax.data.tables.rows import fields_of, row_blocks
from ssd4rec_jax.errors import UserError

INPUTS = int(os.environ.get('SSD4REC_FUZZ', '2000'))
SKIP = BadRowPolicy(skip=True, max_share=1.0)
COLUMNS = ('user', 'note', 'item', 'time')
NAMES = dict(user='user', item='item', time='time')


def inputs(share: float):
    return settings(
        max_examples=max(10, int(INPUTS * share)), deadline=None, database=None, derandomize=INPUTS == 2000,
        suppress_health_check=list(HealthCheck),
    )


# The model.

def model_rows(text: str, separator: str, quoted: bool) -> list[tuple[int, list[str] | None]]:
    """(number of its first line, its fields or None where its quotes are wrong) of each row, read letter by letter."""
    if '\r' in text and '\n' not in text:
        text = text.replace('\r', '\n')
    text = text.replace('\r\n', '\n').rstrip('\r\n')
    rows, at = [], 0
    blanks = ''.join(b for b in ' \t' if b not in separator)
    while at < len(text):
        line, position, fields = 1 + text.count('\n', 0, at), at, []
        while fields is not None:
            field, position = model_field(text, position, separator, quoted, blanks)
            fields = None if field is None else [*fields, field]
            if fields is None or position >= len(text) or text[position] == '\n':
                break
            position += len(separator)
        if fields is None:
            position = text.find('\n', at) if '\n' in text[at:] else len(text)
        rows.append((line, fields))
        at = position + 1
    return rows


def model_field(text: str, at: int, separator: str, quoted: bool, blanks: str) -> tuple[str | None, int]:
    start = at
    while quoted and start < len(text) and text[start] in blanks:
        start += 1
    if quoted and text[start:start + 1] == '"':
        value, k = '', start + 1
        while k < len(text):
            if text[k] != '"':
                value, k = value + text[k], k + 1
            elif text[k + 1:k + 2] == '"':
                value, k = value + '"', k + 2
            else:
                break
        else:
            return None, k
        k += 1
        while k < len(text) and text[k] in blanks:
            k += 1
        return (value, k) if k == len(text) or text[k] == '\n' or text.startswith(separator, k) else (None, k)
    stop = at
    while stop < len(text) and text[stop] != '\n' and not text.startswith(separator, stop):
        stop += 1
    return text[at:stop], stop


NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')


def model_time(text: str) -> float | None:
    text = text.strip()
    if not NUMBER.fullmatch(text):
        return None
    return float(text) if 0 <= float(text) <= 2**63 - 1024 else None


def model_id(text: str) -> str | None:
    return None if text.strip() in ('', 'nan', 'NaN', 'null', 'NULL', 'None') else text.strip()


def model_column(ids: list[str]) -> list:
    if all(re.fullmatch(r'(0|[1-9][0-9]{0,17})(\.0+)?', i) for i in ids):
        return [int(i.partition('.')[0]) for i in ids]
    return ids


def model_log(rows: list[tuple[int, list[str] | None]]) -> tuple[list, list, list, list[int]] | None:
    """(users, items, times, lines of bad rows); None where the log as a whole is refused."""
    whole = [(line, fields) for line, fields in rows if fields is not None and len(fields) == len(COLUMNS)]
    bad = sorted({line for line, _ in rows} - {line for line, _ in whole})
    readable = [model_time(fields[3]) is not None for _, fields in whole]
    if len(whole) >= 3 and 2 * sum(readable) < len(whole):
        return None
    good = []
    for line, (user, _, item, time) in whole:
        row = model_id(user), model_id(item), model_time(time)
        (bad.append(line) if None in row else good.append(row))
    if not good:
        return None
    users, items, times = zip(*good, strict=True)
    return model_column(list(users)), model_column(list(items)), list(times), sorted(bad)


# What is compared.

def read(content: bytes, format: TableFormat | JsonLinesFormat | TableOptions) -> Interactions | None:
    """The log, None where it is refused with a sentence; any other exception is what is looked for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'log'
        path.write_bytes(content)
        try:
            if isinstance(format, TableOptions):
                return find_source('interactions', path, options=format, policy=SKIP).read()
            return read_interactions((RawFile(path),), format, SKIP)
        except UserError as error:
            assert str(error) and '\n' not in str(error)[:20]
            return None


def assert_equal(log: Interactions | None, expected: tuple[list, list, list, list[int]] | None) -> None:
    if expected is None:
        assert log is None
        return
    assert log is not None
    bad = sorted(int(row.place.rpartition(':')[2]) for row in log.bad_rows)
    assert (log.users.tolist(), log.items.tolist(), log.times.tolist(), bad) == expected


IDS = st.sampled_from(['a', 'b 1', '3', '3.0', '007', '-1', '', ' ', 'nan', 'None', 'é', ' x ', '1234567890' * 2])
TIMES = st.sampled_from(['5', '7', ' 9', '5.0', '2.5', '1e3', '', 'soon', '-1', 'nan', '1_0', '.5', '0'])
NOTES = st.text(alphabet='ab ,;"\n\r', max_size=6)
JUNK = st.text(alphabet='a1 ,"\n\r\t', max_size=40)


@st.composite
def rows_of(draw, separator: str) -> str:
    """A row, quoted well, badly or not at all, sometimes with a field too many or too few."""
    fields = [draw(IDS), draw(NOTES), draw(IDS), draw(TIMES)]
    how = draw(st.sampled_from(['well', 'well', 'well', 'plain', 'lone', 'blank', 'short', 'long']))
    if how in ('well', 'blank'):
        needs = [any(c in f for c in ('"', '\n', '\r', separator[0])) or draw(st.booleans()) for f in fields]
        pad = ' ' if how == 'blank' else ''
        quoted = [f'{pad}"{field.replace(chr(34), chr(34) * 2)}"{pad}' for field in fields]
        fields = [q if need else field for q, need, field in zip(quoted, needs, fields, strict=True)]
    elif how == 'lone':
        k = draw(st.integers(0, 3))
        fields[k] = draw(st.sampled_from(['"' + fields[k], fields[k] + '"', f'"{fields[k]}"x']))
    elif how == 'short':
        fields.pop()
    elif how == 'long':
        fields.append('x')
    return separator.join(fields)


def tables(separator: str):
    ends = st.sampled_from(['\n', '\n', '\r\n', ''])
    return st.tuples(st.lists(rows_of(separator), max_size=8), JUNK | st.just(''), ends).map(
        lambda parts: '\n'.join([*parts[0], *([parts[1]] if parts[1] else [])]) + parts[2]
    )


@given(text=tables(','))
@inputs(0.3)
def test_csv(text):
    format = TableFormat(',', **NAMES, columns=COLUMNS, quoted=True)
    assert_equal(read(text.encode(), format), model_log(model_rows(text, ',', True)))


@given(text=tables('::'))
@inputs(0.15)
def test_two_colons(text):
    format = TableFormat('::', **NAMES, columns=COLUMNS)
    assert_equal(read(text.encode(), format), model_log(model_rows(text, '::', False)))


@given(text=tables('\t') | JUNK, quoted=st.booleans())
@inputs(0.15)
def test_tsv(text, quoted):
    format = TableFormat('\t', **NAMES, columns=COLUMNS, quoted=quoted)
    assert_equal(read(text.encode(), format), model_log(model_rows(text, '\t', quoted)))


@given(text=tables(',') | JUNK, size=st.integers(1, 20))
@example(text='a,;","a,5\n"\r\n', size=1)  # the CR comes before its LF, behind a quote that closes
@example(text='a,"\r\r\n",a,5\n', size=1)
@inputs(0.2)
def test_rows_do_not_depend_on_blocks(text, size):
    raw = text.encode()
    if '\r' in text and '\n' not in text:
        return  # the whole file tells such lines, before blocks are made
    found = []
    for block in row_blocks([raw[k:k + size] for k in range(0, len(raw), size)], ',', True, size):
        found += [(row.line, None) for row in block.broken]
        lines = block.data.split(b'\n')[:-1]
        found += [
            (int(line), fields_of(row, block.separator, block.newline))
            for line, row in zip(block.lines, lines, strict=True)
        ]
    assert sorted(found, key=lambda row: row[0]) == model_rows(text, ',', True)


VALUES = st.sampled_from(['a', '3', 3, 3.0, 2.5, None, '', '007', ['x'], {'k': 1}, 'null', 12345678901, True, 'é\n"'])
JSON_TIMES = st.sampled_from([5, 7, 5.0, '9', 2.5, None, 'soon', -1, '', [1]])


@st.composite
def json_line(draw) -> str:
    record = {'user': draw(VALUES), 'item': draw(VALUES), 'time': draw(JSON_TIMES), 'more': draw(VALUES)}
    if draw(st.integers(0, 9)) == 0:
        del record[draw(st.sampled_from(['user', 'item', 'time']))]
    line = json.dumps(record, ensure_ascii=draw(st.booleans()))
    return draw(st.sampled_from([line] * 8 + [line[:-1], repr(record), '[1]', '3', '', line + line, line + ' ']))


def model_json(text: str) -> tuple[list, list, list, list[int]] | None:
    rows: list[tuple[int, list[str] | None]] = []
    for number, line in enumerate(text.rstrip('\n').split('\n') if text.strip('\n') else [], start=1):
        try:
            record = json.loads(line)
            user, item, time = record['user'], record['item'], record['time']
            if any(isinstance(i, (list, dict, bool)) for i in (user, item)):
                raise ValueError
            rows.append((number, [*map(model_json_value, (user,)), '', *map(model_json_value, (item, time))]))
        except (ValueError, KeyError, TypeError):
            rows.append((number, None))
    return model_log(rows)


def model_json_value(value) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return '' if value is None else str(value)


@given(lines=st.lists(json_line(), max_size=8))
@inputs(0.1)
def test_json_lines(lines):
    text = '\n'.join(lines) + '\n'
    assert_equal(read(text.encode(), JsonLinesFormat('user', 'item', 'time')), model_json(text))


HEADERS = st.sampled_from([
    'user_id,item_id,timestamp', 'user_id\titem_id\ttimestamp', 'userId;movieId;ts', 'sep=;', 'a b c', '', '[', '"',
    'user_id::item_id::timestamp', '{"user_id": 1}', 'PK\x03\x04', '\x1f\x8b', 'PAR1',
    'user_id,item_id,timestamp\n1,2,2020-01-01',
])
OPTIONS = st.builds(
    TableOptions, separator=st.sampled_from([None, None, ',', '\t', '::', 'space', '"', 'ab']),
    quote=st.sampled_from([None, '"', 'none', 'x']),
    columns=st.sampled_from([(), (), ('user', 'item', 'time'), ('user', 'item')]),
    time=st.sampled_from([None, None, 'none', 'ts']),
    encoding=st.sampled_from([None, None, 'latin-1', 'utf-16', 'nope']),
    time_format=st.sampled_from([None, None, '%d/%m/%Y', '%', 'x']),
)


@given(header=HEADERS, body=st.binary(max_size=60) | tables(',').map(str.encode), options=OPTIONS)
@inputs(0.1)
def test_anything_is_read_or_refused_with_a_sentence(header, body, options):
    read(header.encode() + b'\n' + body, options)
