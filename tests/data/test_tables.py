"""The door for tables, on literal files of the kinds that people have."""
import datetime
import gzip
import io
import itertools
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.log import REFUSE, BadRowPolicy
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.readers import read_frame
from ssd4rec_jax.data.sources import FrameSource, find_source
from ssd4rec_jax.data.summary import describe, kept_lines
from ssd4rec_jax.data.tables import rows as rows_module
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import ConfigError, DataError

HEADER = 'user_id,item_id,timestamp\n'
ROWS = 'u1,i1,1600000000\nu2,i2,1600000060\nu1,i3,1600000120\n'
USERS, ITEMS, TIMES = ['u1', 'u2', 'u1'], ['i1', 'i2', 'i3'], [1600000000, 1600000060, 1600000120]
SKIP = BadRowPolicy(skip=True, max_share=0.9)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, policy: BadRowPolicy = REFUSE, **options):
    return find_source('interactions', path, options=TableOptions(**options), policy=policy).read()


def columns(log) -> tuple[list, list, list]:
    return log.users.tolist(), log.items.tolist(), log.times.tolist()


def zipped(text: str, name: str = 'log.csv', *more: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
        for other in more:
            archive.writestr(other, 'x')
    return out.getvalue()


def tarred(text: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz') as archive:
        info = tarfile.TarInfo('folder/log.csv')
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def parquet(rows: str) -> bytes:
    out = io.BytesIO()
    pl.read_csv(io.StringIO(HEADER + rows)).write_parquet(out)
    return out.getvalue()


def json_lines(rows: str) -> str:
    names = HEADER.strip().split(',')
    return ''.join(
        json.dumps(dict(zip(names, [u, i, int(t)], strict=True))) + '\n'
        for u, i, t in (line.split(',') for line in rows.splitlines())
    )


@pytest.mark.parametrize('name, content', [
    ('log.CSV', HEADER + ROWS),
    ('log.csv', gzip.compress((HEADER + ROWS).encode(), mtime=0)),  # gzip without its ending
    ('log', gzip.compress((HEADER + ROWS).encode(), mtime=0)),
    ('log.csv.gz', HEADER + ROWS),  # a plain file with gzip's ending
    ('log.csv.gz', zipped(HEADER + ROWS)),
    ('log.zip', zipped(HEADER + ROWS)),
    ('log.csv.zip', zipped(HEADER + ROWS, 'folder/log.csv')),
    ('log.tsv', (HEADER + ROWS).replace(',', '\t')),
    ('log.txt', (HEADER + ROWS).replace(',', ' ')),
    ('log.inter', 'user_id:token item_id:token timestamp:float\n' + ROWS.replace(',', '  ')),  # RecBole's, by blanks
    ('log.txt', (HEADER + ROWS).replace(',', ' | ').replace(' | ', '|')),
    ('ratings.dat', (HEADER + ROWS).replace(',', '::')),
    ('excel.csv', 'sep=;\n' + (HEADER + ROWS).replace(',', ';')),
    ('log.csv', (HEADER + ROWS).replace(',', ', ')),
    ('log.csv', (HEADER + ROWS).replace('\n', '\r\n')),
    ('log.csv', (HEADER + ROWS).replace('\n', '\r')),
    ('log.csv', '\ufeff' + HEADER + ROWS),
    ('log.csv', (HEADER + ROWS).encode('utf-16')),
    ('log.parquet', parquet(ROWS)),
    ('log.csv', parquet(ROWS)),
    ('log.json', json_lines(ROWS)),
    ('log.json.gz', gzip.compress(json_lines(ROWS).encode(), mtime=0)),
    ('log.csv', HEADER + ROWS + '\n\r\n\n'),
], ids=itertools.count())
def test_content_tells_what_a_file_is(tmp_path, name, content):
    log = read(write(tmp_path / name, content))
    assert columns(log) == (USERS, ITEMS, TIMES) and log.time_unit == 's'


def test_zstd_is_read_where_pyarrow_is_there(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    with pyarrow.output_stream(str(tmp_path / 'log.csv.zst'), compression='zstd') as out:
        out.write((HEADER + ROWS).encode())
    assert columns(read(tmp_path / 'log.csv.zst')) == (USERS, ITEMS, TIMES)
    data = (tmp_path / 'log.csv.zst').read_bytes()
    with pytest.raises(DataError, match='log.csv.zst: (cut short or damaged|cannot be read)'):
        read(write(tmp_path / 'log.csv.zst', data[:-4]))


def test_a_folder_and_a_pattern_are_one_log_in_order_of_names(tmp_path):
    for number, row in enumerate(ROWS.splitlines()):
        write(tmp_path / f'part-{number}.parquet', parquet(row + '\n'))
    write(tmp_path / '_SUCCESS', '')
    write(tmp_path / '.part-0.parquet.crc', 'x')
    assert columns(read(tmp_path)) == columns(read(tmp_path / 'part-*.parquet')) == (USERS, ITEMS, TIMES)
    write(tmp_path / 'items.csv', 'x')
    with pytest.raises(DataError, match='files of several kinds lie there'):
        read(tmp_path)


@pytest.mark.parametrize('content, message', [
    (zipped('x', 'a.csv', 'b.csv'), r'a zip archive of 2 files \(a.csv, b.csv ...\): unpack it'),
    (zipped('x', 'xl/workbook.xml'), 'an Excel workbook: save the sheet as csv'),
    ('[{"user_id": 1}]', 'one JSON array: write one object a line'),
    (gzip.compress(parquet(ROWS), mtime=0), 'a compressed Parquet file: decompress it'),
    (tarred(HEADER + ROWS), 'a tar archive: unpack it'),
    (b'\x00\x01\x02\x03' * 9, 'no text and no Parquet file'),
    ((HEADER + ROWS).encode('utf-16-le'), 'UTF-16 without a byte order mark: name it with --encoding=utf-16-le'),
    (parquet(ROWS)[:-9], 'cut short or damaged'),
    ('word\n', 'has one field: tell the fields apart with --separator'),
    ('', 'is empty'),
    (HEADER, 'holds no rows'),
    ('sep=;', 'holds no rows'),
], ids=itertools.count())
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / 'log.csv', content))


def test_an_encoding_is_named(tmp_path):
    path = write(tmp_path / 'log.csv', (HEADER + 'josé,i1,1600000000\n').encode('latin-1'))
    with pytest.raises(DataError, match=r'log.csv:2: byte 0xe9 is not UTF-8 text: name the encoding'):
        read(path)
    assert read(path, encoding='latin-1').users.tolist() == ['josé']
    with pytest.raises(ConfigError, match='--encoding=latin-99 is no encoding'):
        read(path, encoding='latin-99')
    with pytest.raises(DataError, match='is not text in ascii'):
        read(path, encoding='ascii')


# Columns.

@pytest.mark.parametrize('header', [
    'userId,movieId,rating,timestamp', 'reviewerID,asin,overall,unixReviewTime', 'user_id,parent_asin,rating,ts',
    'user_id:token,item_id:token,rating:float,timestamp:float', 'visitorid,itemid,event,event_time',
    'User-ID,track_id,n,Event Time', 'uid,sid,n,created_at',
])
def test_usual_names_are_guessed(tmp_path, header):
    log = read(write(tmp_path / 'log.csv', header + '\nu1,i1,5,1600000000\n'))
    assert columns(log) == (['u1'], ['i1'], [1600000000])


def test_a_guess_is_said_aloud_and_overridden(tmp_path):
    path = write(tmp_path / 'log.csv', 'uid,other,asin,timestamp\nu1,x,i1,1600000000\n')
    log = read(path)
    assert log.notes == (
        f"{path}:1: users are read from column 'uid' (--user_column names another)",
        f"{path}:1: items are read from column 'asin' (--item_column names another)",
        f'{path}: timestamp holds seconds since 1970',
    )
    assert read(path, item='other').items.tolist() == ['x']


def test_a_wrong_column_is_answered_with_those_there_are_and_the_nearest(tmp_path):
    path = write(tmp_path / 'log.csv', 'userId,movieId,rated_at\nu1,i1,1600000000\n')
    with pytest.raises(DataError, match="found userId, movieId, rated_at; did you mean 'userId'"):
        read(path, user='user_id', time='rated_at')
    with pytest.raises(DataError, match='another usual name of times in the header; found userId, movieId, rated_at'):
        read(path)


@pytest.mark.parametrize('first, suggested', [
    ('u1,i1,1600000000', '--columns=user,item,time'), ('6::0::4::1600001320', '--columns=user,item,rating,time'),
    ('0 0', '--columns=user,item --time_column=none'), ('u1,i1,2024-06-08 11:53', '--columns=user,item,time'),
])
def test_a_file_without_header_says_how_to_name_its_columns(tmp_path, first, suggested):
    path = write(tmp_path / 'log', f'{first}\n{first}\n')
    with pytest.raises(DataError, match=f'log:1: {first!r} is no header: .* {suggested}'):
        read(path)


def test_columns_named_for_a_file_without_header(tmp_path):
    ten = write(tmp_path / 'ratings.dat', '6::0::4::1600001320\n4::5::4::1600000720\n')
    assert columns(read(ten, columns=('user', 'item', 'rating', 'time'))) == ([6, 4], [0, 5], [1600001320, 1600000720])
    sasrec = write(tmp_path / 'ml-1m.txt', '1 7\n1 3\n2 7\n')
    log = read(sasrec, columns=('user', 'item'), time='none')
    assert columns(log) == ([1, 1, 2], [7, 3, 7], [0, 1, 2]) and log.time_unit == ''


def test_item_lists_of_recbole_are_histories(tmp_path):
    path = write(tmp_path / 'train.inter', 'session_id:token\titem_id_list:token_seq\titem_id:token\ns0\ti1 i2\ti3\n')
    assert columns(read(path, user='session_id')) == (['s0'] * 3, ['i1', 'i2', 'i3'], [0, 1, 2])


def test_exchanged_users_and_items_are_warned_of(tmp_path):
    rows = ''.join(f'B{k % 3},A{k % 7},5.0,{1600000000 + k}\n' for k in range(42))
    write(tmp_path / 'ratings_Beauty.csv', rows)
    dataset, _ = prepare(find_source('amazon-beauty', tmp_path), DataConfig(), tmp_path / 'out')
    (note,) = dataset.report['notes']
    assert 'has 3 users and 7 items: if the item stands first' in note and '--columns=item,user,rating,time' in note
    right = read(tmp_path / 'ratings_Beauty.csv', columns=('item', 'user', 'rating', 'time'))
    assert set(right.users.tolist()) == {f'A{k}' for k in range(7)}


def test_python_dicts_are_named_with_the_remedy(tmp_path):
    write(tmp_path / 'reviews_Beauty_5.json', "{'reviewerID': 'u6', 'asin': 'i0', 'unixReviewTime': 1600001320}\n")
    with pytest.raises(DataError, match=r'reviews_Beauty_5.json:1: a Python dict, not a JSON object: convert the file'):
        find_source('amazon-beauty', tmp_path).read()


# Quotes, and rows judged one by one.

def test_quotes_as_rfc_4180_says(tmp_path):
    path = write(tmp_path / 'log.csv', (
        'user_id,review,item_id,timestamp\n'
        '"u1","good, really\nwould ""buy"" again",i1,"1600000000"\n'
        'u 2, "blanks around" ,"a,b",1600000060\n'
        'u3,a 7" pipe,"say ""hi""",1600000120\n'
    ))
    assert columns(read(path)) == (['u1', 'u 2', 'u3'], ['i1', 'a,b', 'say "hi"'], TIMES)


def test_a_line_is_named_behind_line_breaks_in_quotes(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + '"u\n\n1",i1,1600000000\nu2,"i2",soon\nu3,i3,5\n')
    with pytest.raises(DataError, match=r"log.csv:5: timestamp is 'soon', not a number"):
        read(path)


def test_a_field_of_ten_megabytes_with_line_breaks(tmp_path):
    review = 'a line of ""text"",\n' * 500_000
    path = write(tmp_path / 'log.csv', f'user_id,review,item_id,timestamp\nu1,"{review}",i1,5\nu2,"{review}",i2,6\n')
    assert columns(read(path)) == (['u1', 'u2'], ['i1', 'i2'], [5, 6])


def test_a_tsv_with_lone_quotes_does_not_quote(tmp_path):
    names = '"odd bo" singer', 'the 7" band', '"Untitled'
    rows = '\n'.join(f'u{k}\ti{k}\t{k}\t{name}' for k, name in enumerate(names))
    log = read(write(tmp_path / 'plays.tsv', f'user_id\titem_id\ttimestamp\tartist\n{rows}\n'))
    assert columns(log) == (['u0', 'u1', 'u2'], ['i0', 'i1', 'i2'], [0, 1, 2])
    quoted = read(write(tmp_path / 'quoted.tsv', 'user_id\titem_id\ttimestamp\n"u\t1"\ti1\t5\n'))
    assert quoted.users.tolist() == ['u\t1']


def test_quotes_can_be_switched_off(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + '"u1,i1,5\n')
    with pytest.raises(DataError, match='log.csv:2: a quote opens a field and none closes it: .*--quote=none'):
        read(path)
    assert read(path, quote='none').users.tolist() == ['"u1']


@pytest.mark.parametrize('rows, message', [
    ('u1,"red, blue",i1,5\nu2,i2,6\nu3,x,i3,7\n', '3: 3 fields where 4 are expected'),  # they balance in sum
    ('u1,x,i2,"357\nu2,x,i3,358\n', '2: a quote opens a field and none closes it'),
    ('u1,x,i1,5\nu1,x,i2,"357\nu2,x,i3,"358\n', '3: text follows a closing quote|3: a quote opens'),
    ('u1,"x"y,i1,5\n', '2: text follows a closing quote'),
    ('u1,x,i1,5\n\nu1,x,i1,5\n', '3: 1 fields where 4 are expected'),
    ('u1,x,"",5\n', '2: item_id is empty'),
    ('u1,x,"  ",5\n', '2: item_id is empty'),
    ('null,x,i1,5\n', "2: user_id is 'null', which stands for a missing id"),
])
def test_a_bad_row_is_named_whatever_the_others_are(tmp_path, rows, message):
    with pytest.raises(DataError, match=r'log\.csv:(' + message + ')'):
        read(write(tmp_path / 'log.csv', 'user_id,title,item_id,timestamp\n' + rows))


def test_text_between_the_colons_is_no_separator(tmp_path):
    path = write(tmp_path / 'ratings.dat', 'user_id::item_id::rating::timestamp\n3::4::3.5::105\n3:77:4::3.5::106\n')
    with pytest.raises(DataError, match=r'ratings.dat:3: 3 fields where 4 are expected'):
        read(path)


def test_an_unclosed_quote_is_given_up_after_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, 'LONGEST_ROW', 100)
    blocks = rows_module.row_blocks([b'a,"b\n' + b'c,d\n' * 60, b'e,f\n'], ',', True, block_bytes=64)
    found = list(blocks)
    assert [row.line for block in found for row in block.broken] == [1]
    assert b''.join(block.data for block in found).count(b'\n') == 61
    assert np.concatenate([block.lines for block in found]).tolist() == list(range(2, 63))


# Ids.

@pytest.mark.parametrize('ids, expected', [
    (['3', '3.0', '12'], [3, 3, 12]),
    (['3', '0594481813', '12'], ['3', '0594481813', '12']),
    (['+3', '-3', '3'], ['+3', '-3', '3']),
    (['3.0', '3.5', '3'], ['3.0', '3.5', '3']),
    (['3.0', 'a', '3'], ['3.0', 'a', '3']),
    ([' a ', 'a', '\u3000b'], ['a', 'a', 'b']),
    (['9223372036854775808', '1', '2'], ['9223372036854775808', '1', '2']),
    (['nano', 'Nonesuch', 'nullable'], ['nano', 'Nonesuch', 'nullable']),
])
def test_what_an_id_is(tmp_path, ids, expected):
    text = HEADER + ''.join(f'u,{i},{n}\n' for n, i in enumerate(ids))
    records = ''.join(json.dumps({'user_id': 'u', 'item_id': i, 'timestamp': n}) + '\n' for n, i in enumerate(ids))
    frame = pl.DataFrame({'user_id': 'u', 'item_id': ids, 'timestamp': range(len(ids))})
    for log in (read(write(tmp_path / 'a.csv', text)), read(write(tmp_path / 'a.json', records)), read_frame(frame)):
        assert log.items.tolist() == expected


@pytest.mark.parametrize('column, expected', [
    (pl.Series([3.0, 4.0]), [3, 4]), (pl.Series([3.0, 4.5]), ['3', '4.5']),
    (pl.Series([3, 4], dtype=pl.UInt64), [3, 4]),
    (pl.Series([2**63, 4], dtype=pl.UInt64), ['9223372036854775808', '4']), (pl.Series([-3, 4]), [-3, 4]),
    (pl.Series(['b', 'a'], dtype=pl.Categorical), ['b', 'a']), (pl.Series([b'b', b'a']), ['b', 'a']),
])
def test_ids_of_typed_columns(column, expected):
    log = read_frame(pl.DataFrame({'user_id': ['u', 'u'], 'item_id': column, 'timestamp': [1, 2]}))
    assert log.items.tolist() == expected


def test_a_missing_id_in_a_frame_is_named():
    frame = pl.DataFrame({'user_id': ['u', 'u'], 'item_id': [1.0, float('nan')], 'timestamp': [1, 2]})
    with pytest.raises(DataError, match="the frame: row 2: item_id is 'nan', which stands for a missing id"):
        read_frame(frame)


def test_one_very_long_id_costs_its_own_bytes(tmp_path):
    rows = ''.join(f'u{k},{"x" * 40_000 if k == 7 else f"i{k}"},{k}\n' for k in range(3000))
    _, folder = prepare(find_source('interactions', write(tmp_path / 'log.csv', HEADER + rows)),
                        DataConfig(min_interactions=1), tmp_path / 'out')
    assert sum(file.stat().st_size for file in folder.iterdir()) < 250_000


@pytest.mark.parametrize('column', [pl.Series([[1], [2]]), pl.Series([True, False]), pl.Series([{'a': 1}, {'a': 2}])])
@pytest.mark.parametrize('name', ['item_id', 'timestamp'])
def test_columns_that_hold_no_ids_or_times(name, column):
    frame = pl.DataFrame({'user_id': ['u', 'u'], 'item_id': ['i', 'j'], 'timestamp': [1, 2]})
    with pytest.raises(DataError, match=f'the frame: column {name} holds .*, no (item|time)s'):
        read_frame(frame.with_columns(column.alias(name)))


# Times.

UTC = datetime.UTC


@pytest.mark.parametrize('texts, unit, expected', [
    (['1600000000', '1600000060'], 's', [1600000000, 1600000060]),
    (['1600000000000', '1600000060000'], 'ms', [1600000000000, 1600000060000]),
    (['1600000000000000', '1600000060000000'], 'us', [1600000000000000, 1600000060000000]),
    (['1600000000000000001', '1600000060000000000'], 'ns', [1600000000000000001, 1600000060000000000]),
    (['1600000000.25', '1600000060'], 's', [1600000000.25, 1600000060.0]),
    (['1.6e9', '1600000060.0'], 's', [1600000000, 1600000060]),
    (['0', '7'], '', [0, 7]),
    (['2020-09-13T12:26:40', '2020-09-13T12:27:40'], 'us', [1600000000000000, 1600000060000000]),
    (['2020-09-13 12:26:40.5', '2020-09-13 12:27:40'], 'us', [1600000000500000, 1600000060000000]),
    (['2020-09-13T12:26:40Z', '2020-09-13T14:27:40+02:00'], 'us', [1600000000000000, 1600000060000000]),
    (['2020-09-13 12:26:40 UTC', '2020-09-13 14:27:40 +0200'], 'us', [1600000000000000, 1600000060000000]),
    (['2020-09-13 12:26:40.123456789', '2020-09-13 12:27'], 'ns', [1600000000123456789, 1600000020000000000]),
    (['2020-09-13', '1969-12-31'], 'us', [1599955200000000, -86400000000]),
])
def test_times_as_they_come(tmp_path, texts, unit, expected):
    log = read(write(tmp_path / 'log.csv', HEADER + ''.join(f'u,i,{text}\n' for text in texts)))
    assert log.times.tolist() == expected and log.time_unit == unit


def test_a_time_format_is_named_and_suggested(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + ''.join(f'u,i,0{k}/06/2024 11:53\n' for k in (8, 7, 9)))
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value).startswith(
        f"{path}: column timestamp holds '08/06/2024 11:53', '07/06/2024 11:53', '09/06/2024 11:53', neither numbers "
        "nor ISO "
        'dates: name the format, such as --time_format="%d/%m/%Y %H:%M"'
    )
    first = int(datetime.datetime(2024, 6, 8, 11, 53, tzinfo=UTC).timestamp())
    day = 86_400
    assert read(path, time_format='%d/%m/%Y %H:%M').times.tolist() == [
        1_000_000 * (first + by) for by in (0, -day, day)
    ]
    with pytest.raises(DataError, match='they are not of --time_format=%Y'):
        read(path, time_format='%Y')
    with pytest.raises(DataError, match="3: timestamp is 'x', not a date as %d/%m/%Y"):
        read(write(tmp_path / 'one.csv', HEADER + 'u,i,08/06/2024\nu,i,x\nu,i,09/06/2024\n'), time_format='%d/%m/%Y')


def test_one_bad_date_is_a_bad_row(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + 'u,i,2024-02-28\nu,i,2024-02-30\n')
    with pytest.raises(DataError, match="log.csv:3: timestamp is '2024-02-30', not a date"):
        read(path)


def test_a_column_that_holds_no_times_is_one_sentence(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + 'u,i,monday\nu,i,tuesday\nu,i,friday\n')
    with pytest.raises(DataError, match="column timestamp holds 'monday', 'tuesday', 'friday', neither numbers"):
        read(path)


def test_two_scales_are_refused_with_a_row_of_each(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + 'u,i,1600000000\nu,i,1600000000\nu,i,1600000060000\n')
    with pytest.raises(DataError, match=r'two scales, seconds \(.*:2: 16\d+\) and milliseconds \(.*:4: 16\d+\)'):
        read(path)


@pytest.mark.parametrize('unit', ['ms', 'us', 'ns'])
@pytest.mark.parametrize('zone', [None, 'Europe/Berlin'])
def test_datetimes_of_frames(unit, zone):
    moment = datetime.datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
    column = pl.Series([moment]).dt.replace_time_zone(None).dt.cast_time_unit(unit)
    if zone:
        column = column.dt.replace_time_zone('UTC').dt.convert_time_zone(zone)
    log = read_frame(pl.DataFrame({'user_id': ['u'], 'item_id': ['i'], 'timestamp': column}))
    assert log.time_unit == unit and log.times.tolist() == [1600000000 * {'ms': 10**3, 'us': 10**6, 'ns': 10**9}[unit]]


def test_fractional_seconds_are_kept_as_microseconds(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + 'u,i,1600000000.25\nu,j,1600000000\n')
    dataset, _ = prepare(find_source('interactions', path), DataConfig(min_interactions=1), tmp_path / 'out')
    assert dataset.times.tolist() == [1600000000000000, 1600000000250000] and dataset.time_unit == 'us'
    assert dataset.item_ids[dataset.items - 1].tolist() == ['j', 'i']


def test_the_order_of_the_rows_is_taken_where_there_are_no_times(tmp_path):
    path = write(tmp_path / 'log.csv', 'user_id,item_id\nu,b\nv,a\nu,a\n')
    with pytest.raises(DataError, match='take the order of the rows with --time_column=none'):
        read(path)
    log = read(path, time='none')
    assert columns(log) == (['u', 'v', 'u'], ['b', 'a', 'a'], [0, 1, 2])
    assert log.time_unit == '' and log.notes == (f'{path}: the order of the rows is taken for the order in time',)


# Frames.

def test_pandas_and_pyarrow_frames():
    pandas = pytest.importorskip('pandas')
    pyarrow = pytest.importorskip('pyarrow')
    frame = pandas.DataFrame({
        'user_id': USERS, 'item_id': [3.0, 4.0, 3.0], 'timestamp': pandas.to_datetime(TIMES, unit='s'), 'price': 1,
    })
    expected = (USERS, [3, 4, 3])
    for given in (frame, pyarrow.Table.from_pandas(frame), pl.from_pandas(frame), pl.from_pandas(frame).lazy()):
        log = read_frame(given)
        assert columns(log)[:2] == expected
        assert (log.times // {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}[log.time_unit]).tolist() == TIMES


def test_a_frame_is_prepared_and_told_apart_by_its_values(tmp_path):
    frame = pl.DataFrame({'user_id': ['a', 'b'] * 5, 'item_id': range(10), 'timestamp': range(10)})
    config = DataConfig(min_interactions=1)
    dataset, folder = prepare(FrameSource(frame), config, tmp_path / 'out')
    assert dataset.user_ids.tolist() == ['a', 'b'] and dataset.item_ids.tolist() == list(range(10))
    assert FrameSource(frame).content_hash() == FrameSource(frame.clone()).content_hash()
    assert FrameSource(frame).content_hash() != FrameSource(frame.with_columns(item_id=pl.lit(1))).content_hash()
    with pytest.raises(DataError, match='a list is no table'):
        prepare(FrameSource([1]), config, tmp_path / 'out')


# Bad rows, and what is kept.

def test_bad_rows_are_skipped_counted_and_listed(tmp_path):
    text = HEADER + ROWS + 'u1,,5\nu1,i1\n"u1,i1,7\nu3,i4,1600000000\n'
    path = write(tmp_path / 'log.csv', text)
    with pytest.raises(DataError, match='log.csv:5: item_id is empty: .*--bad_rows=skip'):
        read(path)
    with pytest.raises(DataError, match=r'3 of 7 rows .* \(1 no item id, 1 number of fields, 1 quotes; the first'):
        read(path, policy=BadRowPolicy(skip=True))
    source = find_source('interactions', path, policy=SKIP)
    dataset, folder = prepare(source, DataConfig(min_interactions=1), tmp_path / 'out')
    assert dataset.report['rows'] == 7 and dataset.report['bad_rows'] == 3 and dataset.num_interactions == 4
    listed = (tmp_path / 'out.bad_rows.tsv').read_text().splitlines()
    assert [line.split('\t')[0] for line in listed] == ['place', *(f'{path}:{n}' for n in (5, 6, 7))]
    assert f'3 bad (1: no item id, 1: number of fields, 1: quotes; listed in {tmp_path / "out.bad_rows.tsv"})' in (
        kept_lines(dataset, folder)[1]
    )


def test_a_bad_share_just_allowed(tmp_path):
    path = write(tmp_path / 'log.csv', HEADER + 'u,i,1\n' * 99 + 'u,,1\n')
    assert len(read(path, policy=BadRowPolicy(skip=True, max_share=0.01))) == 99
    with pytest.raises(DataError, match='more than --max_bad_share=0.009'):
        read(path, policy=BadRowPolicy(skip=True, max_share=0.009))


def test_what_was_kept_is_said(tmp_path):
    rows = [('u1', 'a', 1), ('u1', 'a', 2), ('u1', 'b', 3), ('u2', 'a', 4), ('u2', 'c', 5), ('u3', 'a', 6)]
    path = write(tmp_path / 'log.csv', HEADER + ''.join(f'{u},{i},{1600000000 + t}\n' for u, i, t in rows))
    config = DataConfig(min_user_interactions=2, min_item_interactions=1)
    dataset, folder = prepare(find_source('interactions', path), config, tmp_path / 'out')
    assert kept_lines(dataset, folder)[1:] == [
        '6 rows read, 0 bad, 1 dropped by the user 2-core and item 1-core (1 of rare users, 0 of rare items)',
        'kept 2 of 3 users, 3 of 3 items, 5 interactions, 2020-09-13T12:26:41 to 2020-09-13T12:26:45; histories of 2.5 '
        '(median) to 3; 20.0% repeat an item of the same user',
    ]
    said = describe(dataset)
    assert (said['train_targets'], said['valid_targets'], said['test_targets']) == (2, 0, 1)


def test_sessions_of_three_events_can_be_prepared_and_a_core_says_why_it_leaves_none(tmp_path):
    text = HEADER + ''.join(f'u{k // 3},i{k % 3},{1600000000 + k}\n' for k in range(90))
    source = find_source('interactions', write(tmp_path / 'log.csv', text))
    with pytest.raises(DataError, match='of 90 rows none is left after the iterated .* 5-core: 90 were of users'):
        prepare(source, DataConfig(), tmp_path / 'out')
    dataset, _ = prepare(source, DataConfig(min_interactions=1), tmp_path / 'out')
    assert describe(dataset)['train_targets'] == 30 and describe(dataset)['test_targets'] == 30
