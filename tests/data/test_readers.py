"""Readers on literal files: what they return, and what they say of a file that is wrong."""
import functools
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ssd4rec_jax.data import readers
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.readers import read_interactions
from ssd4rec_jax.data.sources import OFFICIAL, RECBOLE, find_source
from ssd4rec_jax.data.tables.encoding import blocks_of_lines
from ssd4rec_jax.data.tables.formats import TableFormat, TableOptions
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.presets import default_config

KUAIRAND_HEADER = (
    'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,'
    'long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n'
)
KUAIRAND_ROWS = (
    '7,0,20220409,100,1649433600123,1,0,0,0,0,0,1,5,6,0,0,0,0,1\n'
    '3,12,20220409,100,1649433600120,0,0,0,0,0,0,1,5,6,0,0,0,0,1\n'
    '7,0,20220409,100,1649433600123,1,0,0,0,0,0,1,5,6,0,0,0,0,1\n'
)


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    return path


def read_inter(path: Path):
    return read_interactions((RawFile(path),), RECBOLE)


def write_inter(
    folder: Path, rows: str | bytes, header: str = 'user_id:token\titem_id:token\ttimestamp:float\n'
) -> Path:
    return write(folder / 'log.inter', header.encode() + (rows if isinstance(rows, bytes) else rows.encode()))


def columns(log) -> tuple[list, list, list]:
    return log.users.tolist(), log.items.tolist(), log.times.tolist()


KUAIRAND_COLUMNS = ([7, 3, 7], [0, 12, 0], [1649433600123, 1649433600120, 1649433600123])


@pytest.mark.parametrize('place', [
    'KuaiRand-Pure/data/log_standard_4_08_to_4_21_pure.csv', 'data/log_standard_4_08_to_4_21_pure.csv',
    'log_standard_4_08_to_4_21_pure.csv', 'KuaiRand-Pure/data/log_standard_4_08_to_4_21_pure.csv.gz',
])
def test_kuairand_unpacked(tmp_path, place):
    write(tmp_path / place, KUAIRAND_HEADER + KUAIRAND_ROWS)
    log = find_source('kuairand', tmp_path).read()
    assert columns(log) == KUAIRAND_COLUMNS  # the duplicate row is kept
    assert log.users.dtype == log.items.dtype == np.int32 and log.times.dtype == np.int64


def add_member(archive: tarfile.TarFile, name: str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_kuairand_archive_reads_the_first_standard_log_alone(tmp_path):
    with tarfile.open(tmp_path / 'KuaiRand-Pure.tar.gz', 'w:gz') as archive:
        add_member(archive, 'KuaiRand-Pure/data/log_random_4_22_to_5_08_pure.csv', KUAIRAND_HEADER + 'no row of ours\n')
        add_member(archive, 'KuaiRand-Pure/data/log_standard_4_22_to_5_08_pure.csv', KUAIRAND_HEADER + 'nor this\n')
        add_member(archive, 'KuaiRand-Pure/data/log_standard_4_08_to_4_21_pure.csv', KUAIRAND_HEADER + KUAIRAND_ROWS)
    assert columns(find_source('kuairand', tmp_path).read()) == KUAIRAND_COLUMNS


def test_kuairand_1k_reads_the_earlier_log_first_wherever_it_lies_in_the_archive(tmp_path):
    with tarfile.open(tmp_path / 'KuaiRand-1K.tar.gz', 'w:gz') as archive:
        add_member(
            archive, './KuaiRand-1K/data/log_standard_4_22_to_5_08_1k.csv',
            KUAIRAND_HEADER + '1,2,0,0,1650556800001,' + ','.join('0' * 14) + '\n',
        )
        add_member(archive, './KuaiRand-1K/data/log_standard_4_08_to_4_21_1k.csv', KUAIRAND_HEADER + KUAIRAND_ROWS)
    users, items, times = columns(find_source('kuairand-1k', tmp_path).read())
    assert users == [7, 3, 7, 1] and items == [0, 12, 0, 2] and times[-1] == 1650556800001


def test_kuairand_27k_reads_the_parts_in_order(tmp_path):
    for number, file in enumerate(OFFICIAL['kuairand-27k'].files):
        # The last part has an id that 32 bits do not hold.
        row = f'{number},{2**31 if number == 3 else 5 + number},0,0,{1649433600000 + number},' + ','.join('0' * 14)
        write(tmp_path / 'KuaiRand-27K' / 'data' / file, KUAIRAND_HEADER + row + '\n')
    log = find_source('kuairand-27k', tmp_path).read()
    assert columns(log) == ([0, 1, 2, 3], [5, 6, 7, 2**31], [1649433600000 + n for n in range(4)])
    assert log.users.dtype == np.int32 and log.items.dtype == np.int64
    (tmp_path / 'KuaiRand-27K' / 'data' / 'log_standard_4_08_to_4_21_27k_part2.csv').unlink()
    with pytest.raises(DataError, match='log_standard_4_08_to_4_21_27k_part2.csv is missing'):
        find_source('kuairand-27k', tmp_path)


def test_movielens_1m(tmp_path):
    with zipfile.ZipFile(tmp_path / 'ml-1m.zip', 'w') as archive:
        archive.writestr('ml-1m/movies.dat', 'not::a::log\n')
        archive.writestr('ml-1m/ratings.dat', '1::1193::5::978300760\n1::661::3::978302109\n')
    assert columns(find_source('ml-1m', tmp_path).read()) == ([1, 1], [1193, 661], [978300760, 978302109])


def test_movielens_100k_with_windows_line_ends_and_no_last_one(tmp_path):
    write(tmp_path / 'ml-100k' / 'u.data', '196\t242\t3\t881250949\r\n186\t302\t3\t891717742')
    assert columns(find_source('ml-100k', tmp_path).read()) == ([196, 186], [242, 302], [881250949, 891717742])


def test_movielens_10m_and_the_csv_of_later_ones(tmp_path):
    with zipfile.ZipFile(tmp_path / 'ml-10m.zip', 'w') as archive:
        archive.writestr('ml-10M100K/ratings.dat', '1::122::3.5::838985046\n1::185::5::838983525\n')
    assert columns(find_source('ml-10m', tmp_path).read()) == ([1, 1], [122, 185], [838985046, 838983525])
    for name in ('ml-20m', 'ml-25m', 'ml-32m'):
        write(tmp_path / name / 'ratings.csv', 'userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n')
        assert columns(find_source(name, tmp_path).read()) == ([1], [2], [1112486027])


@pytest.mark.parametrize('name, file, content, time', [
    ('amazon-2014-Books', 'ratings_Books.csv', 'A1,B1,5.0,1369699200\n', 1369699200),
    ('amazon-2018-Books', 'Books.csv', 'B1,A1,5.0,1369699200\n', 1369699200),
    ('amazon-2018-Books', 'Books_5.json.gz', '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1}\n', 1),
    ('amazon-2023-Books', 'Books.csv.gz', 'user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1369699200\n', 1369699200),
    ('amazon-2023-Books', 'Books.jsonl', '{"user_id": "A1", "parent_asin": "B1", "timestamp": 7}\n', 7),
])
def test_any_category_of_amazon(tmp_path, name, file, content, time):
    write(tmp_path / file, content)
    assert columns(find_source(name, tmp_path).read()) == (['A1'], ['B1'], [time])
    assert default_config(name).dataset == name and default_config(name).data.min_interactions == 5


def test_amazon_ratings_and_reviews(tmp_path):
    rows = [('A3EBHHCZO6V2A4', '5555991584', 3.0, 1236384000), ('AZPWAXJG9OJXV', '0205616461', 5.0, 1369699200)]
    expected = (
        ['A3EBHHCZO6V2A4', 'AZPWAXJG9OJXV'], ['5555991584', '0205616461'], [1236384000, 1369699200]
    )
    more = {'helpful': [0, 1], 'reviewText': 'a,"b"\n'}
    reviews = ''.join(
        json.dumps({'reviewerID': u, 'asin': i, 'overall': r, 'unixReviewTime': t, **more}) + '\n'
        for u, i, r, t in rows
    )
    write(tmp_path / 'reviews_Beauty_5.json.gz', reviews)
    assert columns(find_source('amazon-beauty', tmp_path).read()) == expected
    # The ratings csv is canonical: it goes before the reviews.
    write(tmp_path / 'ratings_Beauty.csv', ''.join(f'{u},{i},{r},{t}\n' for u, i, r, t in reversed(rows)))
    assert columns(find_source('amazon-beauty', tmp_path).read()) == tuple(c[::-1] for c in expected)


def test_inter_in_any_column_order(tmp_path):
    path = write(
        tmp_path / 'log.inter.gz',
        'timestamp:float\trating:float\titem_id:token\ttags:token_seq\tuser_id:token\n'
        '881250949.0\t3.5\t007\tx y\tu 1\n2\t\t7\t\t"u2\n',
    )
    log = read_inter(path)
    assert columns(log) == (['u 1', '"u2'], ['007', '7'], [881250949, 2])  # ids are text, quotes and zeros kept
    assert log.times.dtype == np.int64


def test_integer_times_stay_exact_beyond_float64(tmp_path):
    log = read_inter(write_inter(tmp_path, 'a\tb\t1649433600123456789\na\tb\t1649433600123456789.0\n'))
    assert log.times.dtype == np.int64 and log.times.tolist() == [1649433600123456789] * 2


def test_whole_times_in_float_notation_become_integers_and_others_stay_floats(tmp_path):
    whole = read_inter(write_inter(tmp_path, 'a\tb\t1e3\na\tc\t2.50e1\n')).times
    assert whole.dtype == np.int64 and whole.tolist() == [1000, 25]
    fractional = read_inter(write_inter(tmp_path, 'a\tb\t3\na\tc\t0.25\n')).times
    assert fractional.dtype == np.float64 and fractional.tolist() == [3.0, 0.25]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    assert len(read_inter(write_inter(tmp_path, b'a\tb\t3\n', header='\ufeffuser_id\titem_id\ttimestamp\n'))) == 1


def test_csv_with_names_given_and_quoted_fields(tmp_path):
    path = write(tmp_path / 'shop.csv.gz', 'who,what,title,when\nann,"x,1","a, ""b""",5\nbob,y,plain,6\n')
    source = find_source('interactions', path, options=TableOptions('who', 'what', 'when'))
    assert columns(source.read()) == (['ann', 'bob'], ['x,1', 'y'], [5, 6])


@pytest.mark.parametrize('separator', ['tab', ';', '::'])
def test_separator_given(tmp_path, separator):
    real = '\t' if separator == 'tab' else separator
    path = write(tmp_path / 'log.txt', real.join(['user_id', 'item_id', 'timestamp']) + '\n' + real.join('ab5') + '\n')
    source = find_source('interactions', path, options=TableOptions(separator=separator))
    assert columns(source.read()) == (['a'], ['b'], [5])


@pytest.mark.parametrize('block_bytes', [1, 7, 64, 1 << 20])
def test_blocks_hold_whole_lines_and_lose_nothing(tmp_path, block_bytes):
    text = b'header\n' + b''.join(b'%d,%s\n' % (k, b'x' * (k % 11)) for k in range(50)) + b'last'
    blocks = list(blocks_of_lines(RawFile(write(tmp_path / 'f.gz', text)).chunks(), block_bytes))
    assert b''.join(blocks) == text
    assert all(block.endswith(b'\n') for block in blocks[:-1])


@pytest.fixture
def small_blocks(monkeypatch):
    """A file of a few lines is read in many blocks, as a large one is."""
    for name in ('text_batches', 'json_batches'):
        monkeypatch.setattr(readers, name, functools.partial(getattr(readers, name), block_bytes=16))


def test_a_file_of_many_blocks(tmp_path, small_blocks):
    rows = [(f'u{k % 7}', f'i{k % 5}', k) for k in range(100)]
    log = read_inter(write_inter(tmp_path, ''.join(f'{u}\t{i}\t{t}\n' for u, i, t in rows)))
    assert list(zip(*columns(log), strict=True)) == rows


def test_fractional_times_in_a_later_block(tmp_path, small_blocks):
    log = read_inter(write_inter(tmp_path, 'a\tb\t3\n' * 9 + 'a\tc\t0.25\n' + 'a\tb\t7\n' * 9))
    assert log.times.dtype == np.float64 and log.times.tolist() == [3.0] * 9 + [0.25] + [7.0] * 9


def test_the_line_number_counts_over_blocks(tmp_path, small_blocks):
    rows = ''.join(f'u\ti\t{t}\n' for t in range(40)) + 'u\ti\tsoon\n'
    with pytest.raises(DataError, match=r"log\.inter:42: timestamp is 'soon', not a number"):
        read_inter(write_inter(tmp_path, rows))


@pytest.mark.parametrize('row, message', [
    ('a\tb\tyesterday\n', "3: timestamp is 'yesterday', not a number"),
    ('a\tb\t\n', "3: timestamp is '', not a number"),
    ('a\tb\tnan\n', "3: timestamp is 'nan', not a number"),
    ('a\tb\tinf\n', "3: timestamp is 'inf', not a number"),
    ('a\tb\t1_000\n', "3: timestamp is '1_000', not a number"),
    ('a\tb\t-5\n', "3: timestamp is '-5', negative"),
    ('a\tb\t-0.5\n', "3: timestamp is '-0.5', negative"),
    ('a\tb\t99999999999999999999\n', "3: timestamp is '99999999999999999999', beyond a 64-bit integer"),
    ('a\tb\t1e30\n', "3: timestamp is '1e30', beyond a 64-bit integer"),
    ('a\tb\n', r'3: 2 fields where 3 are expected'),
    ('a\tb\t5\t6\n', r'3: 4 fields where 3 are expected'),
    ('\n', r'3: 1 fields where 3 are expected'),
    ('\tb\t5\n', '3: user_id is empty'),
    ('a\t\t5\n', '3: item_id is empty'),
    (b'caf\xe9\tb\t5\n', '3: byte 0xe9 is not UTF-8 text'),
])
@pytest.mark.parametrize('rest', ['', 'a\tb\t6\n'])
def test_a_bad_row_is_named(tmp_path, row, message, rest):
    rows = b'a\tb\t4\n' + (row if isinstance(row, bytes) else row.encode()) + rest.encode()
    if row == '\n' and not rest:
        return assert_blank_end_is_no_row(tmp_path, rows)
    with pytest.raises(DataError, match=r'log\.inter:' + message):
        read_inter(write_inter(tmp_path, rows))


def assert_blank_end_is_no_row(tmp_path, rows):
    assert len(read_inter(write_inter(tmp_path, rows))) == 1


def test_rows_too_short_and_too_long_that_balance_are_found(tmp_path):
    with pytest.raises(DataError, match=r'log\.inter:2: 2 fields'):
        read_inter(write_inter(tmp_path, 'a\tb\nc\td\t5\t6\n'))


@pytest.mark.parametrize('name, line, message', [
    ('kuairand', 'x' + KUAIRAND_ROWS.splitlines()[0], "user_id is 'x7', not an integer"),
    ('kuairand', '7,0,20220409,100,16494', '5 fields where 19 are expected'),
    ('kuairand', KUAIRAND_ROWS.splitlines()[0].replace('123', 'abc'), "time_ms is '1649433600abc', not a number"),
    ('ml-1m', '1::m::5::978300760', "MovieID is 'm', not an integer"),
    ('ml-1m', '1::5::978300760', '3 fields where 4 are expected'),
    ('ml-1m', '1:2:5:978300760', '1 fields where 4 are expected'),
    ('ml-100k', '1\t99999999999999999999\t3\t5', "MovieID is '99999999999999999999', not an integer"),
    ('ml-100k', '1\t2\t3\t-5', "Timestamp is '-5', negative"),
    ('amazon-beauty', 'A1,B2,5.0', '3 fields where 4 are expected'),
    ('amazon-beauty', 'A1,,5.0,3', 'item is empty'),
])
def test_a_bad_row_of_an_official_file_is_named(tmp_path, name, line, message):
    good = {
        'kuairand': KUAIRAND_HEADER + KUAIRAND_ROWS, 'ml-1m': '1::1193::5::978300760\n', 'ml-100k': '1\t2\t3\t4\n',
        'amazon-beauty': 'A1,B2,5.0,3\n',
    }[name]
    path = write(tmp_path / OFFICIAL[name].files[0], good + line + '\n')
    with pytest.raises(DataError, match=f'{path.name}:{good.count(chr(10)) + 1}: {message}'):
        find_source(name, tmp_path).read()


@pytest.mark.parametrize('line, message', [
    ('{"reviewerID": "a"', 'not a JSON object'),
    ('[1]', 'not a JSON object'),
    ('{"reviewerID": "a", "asin": "b"}', "no key 'unixReviewTime'; found reviewerID, asin"),
    ('{"reviewerID": "a", "asin": "b", "unixReviewTime": "soon"}', "unixReviewTime is 'soon', not a number"),
    ('{"reviewerID": "a", "asin": "b", "unixReviewTime": -1}', "unixReviewTime is '-1', negative"),
    ('{"reviewerID": [3], "asin": "b", "unixReviewTime": 1}', r'reviewerID is \[3\], not a text or an integer'),
    ('{"reviewerID": 3, "asin": "b", "unixReviewTime": null}', "unixReviewTime is '', not a number"),
    ("{'reviewerID': 'a', 'asin': 'b', 'unixReviewTime': 1}", 'a Python dict, not a JSON object: convert the file'),
])
def test_a_bad_review_is_named(tmp_path, line, message):
    good = '{"reviewerID": "a", "asin": "b", "unixReviewTime": 1}\n'
    write(tmp_path / 'reviews_Beauty_5.json', good + line + '\n' + good)
    with pytest.raises(DataError, match=r'reviews_Beauty_5\.json:2: ' + message):
        find_source('amazon-beauty', tmp_path).read()


def test_a_missing_column_is_named_with_those_found(tmp_path):
    path = write_inter(tmp_path, 'a\tb\t5\n', header='user_id:token\titem_id:token\trating:float\n')
    with pytest.raises(DataError, match="no column 'timestamp' in the header; found user_id, item_id, rating"):
        read_inter(path)


def test_a_column_named_twice_is_refused(tmp_path):
    path = write_inter(tmp_path, 'a\tb\t5\n', header='user_id\titem_id\ttimestamp\titem_id\n')
    with pytest.raises(DataError, match="more than one column 'item_id'"):
        read_inter(path)


def test_utf16_with_a_byte_order_mark_is_read(tmp_path):
    path = write(tmp_path / 'log.inter', 'user_id\titem_id\ttimestamp\né\tb\t5\n'.encode('utf-16'))
    assert columns(read_inter(path)) == (['é'], ['b'], [5])


@pytest.mark.parametrize('name', ['log.inter', 'log.inter.gz'])
@pytest.mark.parametrize('text, message', [
    ('', 'is empty'),
    ('user_id\titem_id\ttimestamp\n', 'holds no rows'),
    ('user_id\titem_id\ttimestamp', 'holds no rows'),
])
def test_a_file_without_rows_is_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=f'{name}: {message}'):
        read_inter(write(tmp_path / name, text))


@pytest.mark.parametrize('name, format', [
    ('u.data', OFFICIAL['ml-100k'].format), ('r.json', OFFICIAL['amazon-beauty'].others[0][1]),
])
def test_a_file_without_header_that_is_empty_is_refused(tmp_path, name, format):
    path = write(tmp_path / name, '')
    with pytest.raises(DataError, match='is empty|holds no rows'):
        read_interactions((RawFile(path),), format)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match='gone.inter: no such file'):
        read_inter(tmp_path / 'gone.inter')


LONG_LOG = 'user_id\titem_id\ttimestamp\n' + ''.join(
    f'u{k * 7919 % 1000}\ti{k * 104729 % 997}\t{k}\n' for k in range(5000)
)


@pytest.mark.parametrize('keep', [0.001, 0.5, 0.999])
def test_a_truncated_gzip_is_refused(tmp_path, keep):
    path = write(tmp_path / 'log.inter.gz', LONG_LOG)
    data = path.read_bytes()
    path.write_bytes(data[:max(1, int(len(data) * keep))])
    with pytest.raises(DataError, match='log.inter.gz: cut short or damaged'):
        read_inter(path)


def test_a_gzip_with_a_flipped_byte_is_refused(tmp_path):
    path = write(tmp_path / 'log.inter.gz', LONG_LOG)
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum: everything decompresses, nothing may be used
    path.write_bytes(data)
    with pytest.raises(DataError, match='log.inter.gz: cut short or damaged'):
        read_inter(path)


@pytest.mark.parametrize('keep', [0.005, 0.3, 0.999])
def test_truncated_archives_are_refused(tmp_path, keep):
    for name, make in (('KuaiRand-Pure.tar.gz', make_tar), ('ml-1m.zip', make_zip)):
        path = tmp_path / name
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * keep)])
        with pytest.raises(DataError, match=f'{name}.*cut short or damaged'):
            find_source({'ml-1m.zip': 'ml-1m'}.get(name, 'kuairand'), tmp_path).read()
        path.unlink()


def test_a_tar_with_a_flipped_byte_anywhere_is_refused(tmp_path):
    path = tmp_path / 'KuaiRand-Pure.tar.gz'
    make_tar(path)
    sound = path.read_bytes()
    for where in (5000, len(sound) - 6):  # inside the log, and in the checksum at the very end
        damaged = bytearray(sound)
        damaged[where] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            find_source('kuairand', tmp_path).read()


def make_tar(path):
    with tarfile.open(path, 'w:gz') as archive:
        noise = ''.join(f'{k},{k * 7919 % 1009},0,0,{k * k},' + ','.join('0' * 14) + '\n' for k in range(4000))
        add_member(archive, 'KuaiRand-Pure/data/log_standard_4_08_to_4_21_pure.csv', KUAIRAND_HEADER + noise)
        # More follows than is read ahead, so that the checksum at the end is met only by reading on to it.
        add_member(archive, 'KuaiRand-Pure/data/video_features.csv', np.random.default_rng(0).bytes(3 << 20))


def make_zip(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('ml-1m/ratings.dat', ''.join(f'{k}::{k * 7919 % 1009}::5::{k * k}\n' for k in range(4000)))


def test_an_archive_without_the_log_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'ml-1m.zip', 'w') as archive:
        archive.writestr('ml-1m/movies.dat', 'x')
    with pytest.raises(DataError, match='the archive holds no ml-1m/ratings.dat'):
        find_source('ml-1m', tmp_path).read()


def test_a_line_break_inside_quotes_is_part_of_the_field(tmp_path):
    path = write(tmp_path / 'log.csv', 'user_id,item_id,timestamp\na,"x\ny",5\n')
    assert columns(read_interactions((RawFile(path),), TableFormat(',', quoted=True))) == (['a'], ['x\ny'], [5])
