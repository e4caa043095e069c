"""The door for tables, on literal files of the kinds that people have."""
import gzip
import io
import itertools
import json
import tarfile
import zipfile

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.data.tables import rows as rows_module
from ssd4rec_jax.errors import ConfigError, DataError
from tests.data.small_logs import HEADER, ITEMS, ROWS, TIMES, USERS, columns, read, write


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
