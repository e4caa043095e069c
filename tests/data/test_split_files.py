"""Logs in three files, and RecBole's benchmark files of histories: what trains, what is predicted from what."""

import numpy as np
import pytest

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import with_split
from ssd4rec_jax.data.examples import test_examples as held_out_tests
from ssd4rec_jax.data.examples import train_examples, valid_examples
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.readers import read_interactions
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.data.split_files import split_files
from ssd4rec_jax.data.summary import kept_lines
from ssd4rec_jax.data.tables.formats import GUESS, TableOptions
from ssd4rec_jax.errors import ConfigError, DataError

FILES = DataConfig(split='files', min_interactions=1)
NOTHING = dict.fromkeys(('train', 'valid', 'test'))
HEADER = 'user,item,time'
# User a was tested before the last row of training; c appears in the test file alone, and f is an item of it alone.
PARTS = {
    'train': ['a,x,9', 'a,y,1', 'b,x,2', 'b,z,3'], 'valid': ['a,z,5', 'b,y,9'],
    'test': ['b,f,10', 'a,x,4', 'c,x,1', 'c,y,2'],
}
LIST_HEADER = 'session_id:token\titem_id_list:token_seq\titem_id:token'


def write(folder, parts, header=HEADER, name='log.{}.csv'):
    for part, rows in parts.items():
        (folder / name.format(part)).write_text('\n'.join([header, *rows]) + '\n')
    return folder


def prepared(folder, **kwargs):
    return prepare(split_files(folder, NOTHING, **kwargs), FILES, folder.with_name(f'{folder.name}-prepared'))


def pairs(dataset, index):
    names = np.asarray(['-', *map(str, dataset.item_ids.tolist())])
    return [
        (''.join(names[index.items[a:b]]), names[t])
        for a, b, t in zip(index.start, index.stop, index.target, strict=True)
    ]


def test_the_rows_of_each_file_train_or_are_predicted_from_all_before_them(tmp_path):
    folder = tmp_path / 'log'
    folder.mkdir()
    dataset, path = prepared(write(folder, PARTS))
    assert dataset.num_interactions == 10 and dataset.num_users == 3
    assert pairs(dataset, train_examples(dataset)) == [('y', 'x'), ('x', 'z')]
    assert pairs(dataset, valid_examples(dataset)) == [('yx', 'z'), ('xz', 'y')]
    index = held_out_tests(dataset)
    assert pairs(dataset, index) == [('yxz', 'x'), ('xzy', 'f'), ('x', 'y')]
    assert index.missed.tolist() == [False, True, False]
    protocol = (
        'files: trained, validated and tested on the rows of one file each; 1 of their rows, with no earlier one of '
        'the same user, are not predicted; items that training never saw count as not found'
    )
    assert dataset.held_out.protocol == protocol
    assert f'protocol: {protocol} (33.3% of the test targets)' in kept_lines(dataset, path)
    again, _ = prepared(folder)
    assert isinstance(again.parts, np.memmap) and again.held_out.protocol == protocol
    # The same rows as one log are another data set, which has no files to be split by.
    log = find_source('interactions', folder / '*.csv')
    whole, _ = prepare(log, DataConfig(min_interactions=1), tmp_path / 'whole')
    assert whole.parts is None and whole.fingerprint != dataset.fingerprint
    with pytest.raises(DataError, match='data.split=files needs a log in three files'):
        with_split(whole, FILES)


def test_files_are_found_by_their_names_or_named(tmp_path):
    write(tmp_path, PARTS)
    found = split_files(tmp_path, NOTHING)
    assert [file.path.name for file in found.files] == ['log.train.csv', 'log.valid.csv', 'log.test.csv']
    assert found.parts == ('train', 'valid', 'test')
    (tmp_path / 'log.valid.csv').rename(tmp_path / 'Validation.csv')
    assert split_files(tmp_path, NOTHING).files[1].path.name == 'Validation.csv'
    (tmp_path / 'my-test-2.csv').write_text('')
    with pytest.raises(DataError, match=r'more than one \(log\.test\.csv, my-test-2\.csv\).*--test_file'):
        split_files(tmp_path, NOTHING)
    one = split_files(tmp_path, {**NOTHING, 'test': tmp_path / 'my-test-2.csv'})
    assert one.files[2].path == tmp_path / 'my-test-2.csv'
    (tmp_path / 'log.train.csv').unlink()
    with pytest.raises(DataError, match='of its files none has train or training in its name: name .* --train_file'):
        split_files(tmp_path, NOTHING)
    with pytest.raises(DataError, match='needs the file of each part: name it with --train_file'):
        split_files(None, NOTHING)
    with pytest.raises(DataError, match='is no folder'):
        split_files(tmp_path / 'gone', NOTHING)
    with pytest.raises(ConfigError, match='name one file twice'):
        split_files(None, dict.fromkeys(NOTHING, tmp_path / 'x.csv'))


def test_a_file_that_leaves_nothing_to_predict_is_refused(tmp_path):
    folder = tmp_path / 'log'
    folder.mkdir()
    write(folder, {**PARTS, 'valid': ['q,x,1']})
    with pytest.raises(DataError, match='no row of the valid file has an earlier one of the same user'):
        prepared(folder)


def lists(folder, **parts):
    folder.mkdir(exist_ok=True)
    rows = {part: ['\t'.join(row) for row in rows] for part, rows in parts.items()}
    return write(folder, rows, LIST_HEADER, 'set.{}.inter')


def test_benchmark_files_of_histories_are_predicted_from_the_history_that_stands_there(tmp_path):
    folder = lists(
        tmp_path / 'set',
        train=[('s', 'i1', 'i2'), ('s', 'i1 i2', 'i3'), ('r', 'i3 i1', 'i2')],
        valid=[('s', 'i1 i2 i3', 'i1'), ('v', 'i2 i2', 'i1')],
        test=[('s', 'i1 i2 i3 i1', 'i2'), ('t', 'i1 i9', 'i3')],
    )
    dataset, _ = prepared(folder)

    def spoken(index):
        return [(h.replace('i', ''), t.replace('i', '')) for h, t in pairs(dataset, index)]

    assert spoken(train_examples(dataset)) == [('1', '2'), ('12', '3'), ('3', '1'), ('31', '2')]
    assert spoken(valid_examples(dataset)) == [('123', '1'), ('22', '1')]
    assert spoken(held_out_tests(dataset)) == [('1231', '2'), ('19', '3')]
    assert 'each row is a history, item_id_list and then item_id' in ' '.join(dataset.report['notes'])


def test_one_file_of_histories_is_a_log(tmp_path):
    folder = lists(tmp_path / 'set', train=[('s0', 'i1 i2 i3 i4', 'i5'), ('s1', 'i1', 'i5'), ('s2', '', 'i2')])
    log = find_source(
        'interactions', folder / 'set.train.inter', options=TableOptions(user='session_id')
    ).read()
    assert log.users.tolist() == ['s0'] * 5 + ['s1'] * 2 + ['s2'] and log.time_unit == '' and log.parts is None
    assert log.items.tolist() == ['i1', 'i2', 'i3', 'i4', 'i5', 'i1', 'i5', 'i2']
    assert log.times.tolist() == list(range(8))


@pytest.mark.parametrize('rows, read', [
    ([('1 2 3', '4'), ('1 2', '3'), ('1', '2')], '1234'),          # the longest first
    ([('1', '2'), ('1 2', '3'), ('2 3', '4'), ('3 4', '5')], '12345'),  # windows of two
    ([('1', '2'), ('1 2 3', '4')], '1234'),
    ([('1', '2'), ('5', '6')], '1256'),                            # another history of the same user
    ([('1', '1'), ('1 1', '1')], '111'),
    ([('', '1'), ('1', '2')], '12'),
])
def test_rows_that_repeat_a_history_add_what_comes_next(tmp_path, rows, read):
    folder = lists(tmp_path / 'set', train=[('s', *row) for row in rows])
    log = read_interactions((RawFile(folder / 'set.train.inter'),), GUESS)
    assert ''.join(map(str, log.items.tolist())) == read


def test_faults_of_files_of_histories_are_named(tmp_path):
    folder = lists(tmp_path / 'set', train=[('s', '1', '2'), ('', '1', '2')])
    file = RawFile(folder / 'set.train.inter')
    with pytest.raises(DataError, match=r'set\.train\.inter:3: session_id is empty'):
        read_interactions((file,), GUESS)
    with pytest.raises(DataError, match='holds a list of items a row, so that --features has no value'):
        read_interactions((file,), TableOptions(features=('item_id',)))
    file.path.write_text('session_id:token\ttag_list:token_seq\titem_id:token\ns\ta b\t1\n')
    with pytest.raises(DataError, match='tag_list holds a list of items a row, and none is called item_id_list'):
        read_interactions((file,), GUESS)
    lists(tmp_path / 'set', train=[('s', '1', '2')], valid=[('s', '1', '2')])
    log = read_interactions(
        tuple(RawFile(folder / f'set.{part}.inter') for part in ('train', 'valid')), GUESS, parts=('train', 'valid')
    )
    assert log.parts.tolist() == [0, 0] and 'warning: 1 rows of held-out files say only' in ' '.join(log.notes)

