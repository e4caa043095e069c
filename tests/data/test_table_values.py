"""What a table's values mean: ids, times, frames, and rows that are bad."""
import datetime
import json

import polars as pl
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.log import BadRowPolicy
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.readers import read_frame
from ssd4rec_jax.data.sources import FrameSource, find_source
from ssd4rec_jax.data.summary import describe, kept_lines
from ssd4rec_jax.errors import DataError
from tests.data.small_logs import HEADER, ROWS, SKIP, TIMES, USERS, columns, read, write

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
