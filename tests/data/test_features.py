"""Columns kept beside the events: their types, their order, on disk, and what is said where they are not there."""
import json

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import open_dataset, save_dataset, with_features
from ssd4rec_jax.data.examples import test_examples as held_out_tests
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.features import as_feature
from ssd4rec_jax.data.packing import StepShape, build_step, plan_epoch
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.readers import read_frame
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.data.sources import FrameSource, find_source
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import ConfigError, DataError

OPTIONS = TableOptions(features=('price', 'category', 'stock'))
# User a's rows are out of order; item z is rare, so that its row is dropped.
ROWS = [
    ('a', 'x', 3, '9.5', 'tea', 1), ('b', 'x', 1, '2', 'milk', 2), ('a', 'y', 1, '', 'tea', 3),
    ('b', 'z', 2, '7', 'oil', 4), ('a', 'x', 2, '4', '', 5), ('b', 'y', 4, '1e1', 'milk', 6),
]
NAMES = 'user', 'item', 'time', 'price', 'category', 'stock'


def write_csv(folder):
    (folder / 'log.csv').write_text('\n'.join(','.join(map(str, row)) for row in [NAMES, *ROWS]) + '\n')
    return folder / 'log.csv'


def write_jsonl(folder):
    records = [{k: v for k, v in zip(NAMES, row, strict=True) if v != ''} for row in ROWS]
    (folder / 'log.jsonl').write_text('\n'.join(map(json.dumps, records)) + '\n')
    return folder / 'log.jsonl'


def write_parquet(folder):
    frame = pl.DataFrame(ROWS, schema=NAMES, orient='row')
    price = pl.col('price').replace('', None).cast(pl.Float64)
    frame.with_columns(price, pl.col('category').replace('', None).cast(pl.Categorical)).write_parquet(
        folder / 'log.parquet'
    )
    return folder / 'log.parquet'


def check(dataset):
    assert dataset.items.tolist() == [2, 1, 1, 1, 2]
    price, category, stock = (dataset.features[name] for name in OPTIONS.features)
    assert price.values.dtype == np.float64 and stock.values.dtype == np.int64 and category.values.dtype == np.int32
    np.testing.assert_array_equal(price.values, [np.nan, 4, 9.5, 2, 10])
    assert stock.values.tolist() == [3, 5, 1, 2, 6]
    assert category.values.tolist() == [1, 0, 1, 2, 2]
    assert category.categories.tolist() == ['tea', 'milk', 'oil']
    assert price.categories is None and stock.categories is None


@pytest.mark.parametrize('write', [write_csv, write_jsonl, write_parquet])
def test_features_follow_the_events_into_memory_mapped_arrays(tmp_path, write):
    source = find_source('interactions', write(tmp_path), options=OPTIONS)
    dataset, folder = prepare(source, DataConfig(min_interactions=2), tmp_path / 'prepared')
    check(dataset)
    assert all(isinstance(feature.values, np.memmap) for feature in dataset.features.values())
    again, _ = prepare(source, DataConfig(min_interactions=2), folder)  # what lies there is known for its own
    check(again)


def test_the_result_does_not_depend_on_the_blocks_and_a_prepared_folder_is_replaced(tmp_path):
    log = find_source('interactions', write_csv(tmp_path), options=OPTIONS).read()
    dataset = build_sequences(log, DataConfig(min_interactions=2), name='log', fingerprint='1', block_rows=2)
    check(dataset)
    save_dataset(dataset, tmp_path / 'prepared')
    plain = find_source('interactions', tmp_path / 'log.csv').read()
    without = build_sequences(plain, DataConfig(min_interactions=2), name='log', fingerprint='2')
    save_dataset(without, tmp_path / 'prepared')
    opened = open_dataset(tmp_path / 'prepared')
    assert opened.features == {} and not list((tmp_path / 'prepared').glob('feature*'))


def test_features_are_part_of_the_fingerprint_and_none_leaves_it_as_it_was(tmp_path):
    path = write_csv(tmp_path)
    hashes = [
        find_source('interactions', path, options=options).content_hash()
        for options in (TableOptions(), TableOptions(features=('price',)), OPTIONS)
    ]
    assert len(set(hashes)) == 3
    assert repr(TableOptions()) == repr(OPTIONS)
    frame = pl.read_csv(path)
    assert FrameSource(frame).content_hash() != FrameSource(frame, OPTIONS).content_hash()


@pytest.mark.parametrize('columns, values, categories', [
    ([['1', '2']], [1, 2], None),
    ([['1'], [' -2 ']], [1, -2], None),
    ([['01', '2']], [1.0, 2.0], None),
    ([['1', 'null']], [1.0, np.nan], None),
    ([['x'], ['', 'y', 'x']], [1, 0, 2, 1], ['x', 'y']),
    ([[True, False]], [1, 0], None),
    ([[1, None]], [1.0, np.nan], None),
    ([[1], [2.5]], [1.0, 2.5], None),
    ([[2**63]], [2.0**63], None),
    ([[1], ['x']], [1, 2], ['1', 'x']),
])
def test_a_column_is_integers_or_numbers_or_categories(columns, values, categories):
    feature = as_feature([pl.Series(part) for part in columns], 'f', 'log')
    np.testing.assert_array_equal(feature.values, values)
    assert feature.values.dtype == (np.int32 if categories else np.asarray(values).dtype)
    assert (feature.categories and feature.categories.tolist()) == categories


def test_lists_and_columns_that_are_not_there_are_refused(tmp_path):
    path = write_csv(tmp_path)
    with pytest.raises(DataError, match=r"no column 'pric' in the header.*did you mean 'price'\? --features names it"):
        find_source('interactions', path, options=TableOptions(features=('pric',))).read()
    frame = pl.DataFrame({'user': [1], 'item': [2], 'time': [3], 'tags': [['a']]})
    with pytest.raises(DataError, match='column tags holds List.*--features takes numbers and texts'):
        read_frame(frame, TableOptions(features=('tags',)))


def test_more_rows_bring_their_features_and_new_categories_new_codes(tmp_path):
    dataset, _ = prepare(
        find_source('interactions', write_csv(tmp_path), options=OPTIONS), DataConfig(min_interactions=2),
        tmp_path / 'prepared',
    )
    more = pl.DataFrame(
        [('b', 'x', 3, 1.0, 'rum', 8), ('c', 'y', 9, None, 'tea', 9)], schema=NAMES, orient='row'
    )
    longer = extended(dataset, read_frame(more, OPTIONS))
    assert longer.items.tolist() == [2, 1, 1, 1, 1, 2, 2]
    assert longer.features['category'].values.tolist() == [1, 0, 1, 2, 4, 2, 1]
    assert longer.features['category'].categories.tolist() == ['tea', 'milk', 'oil', 'rum']
    np.testing.assert_array_equal(longer.features['price'].values, [np.nan, 4, 9.5, 2, 1, 10, np.nan])
    with pytest.raises(DataError, match='has no feature price, which the log has'):
        extended(dataset, read_frame(more))
    with pytest.raises(DataError, match='the feature stock has values of another kind'):
        extended(dataset, read_frame(more.with_columns(stock=pl.lit('many')), OPTIONS))


def test_packed_rows_carry_the_values_of_their_tokens(tmp_path):
    dataset, _ = prepare(
        find_source('interactions', write_csv(tmp_path), options=OPTIONS), DataConfig(min_interactions=2),
        tmp_path / 'prepared',
    )
    index = held_out_tests(with_features(dataset, ['price', 'category']))
    plan = plan_epoch(index.lengths, StepShape(1, 8, 4), seed=0, epoch=0, shuffle=False)
    batch = build_step(index, plan, 0)
    assert batch.items[0].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]  # user b has two interactions, which train
    np.testing.assert_array_equal(batch.features['price'][0], [np.nan, 4, 0, 0, 0, 0, 0, 0])
    assert batch.features['category'][0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert batch.features['price'].dtype == np.float32 and set(batch.features) == {'price', 'category'}
    assert build_step(held_out_tests(with_features(dataset, [])), plan, 0).features is None
    with pytest.raises(ConfigError, match='reads the feature colour and the prepared data has price, category, stock'):
        with_features(dataset, ['colour'])
