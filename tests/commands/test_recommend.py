"""Recommending from the command line: every id can be asked for, and what is written is what the library answers."""
import json

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.commands import recommend
from ssd4rec_jax.commands.table_file import write_table
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.run.model_folder import save_model
from tests.commands.in_process import call
from tests.tiny import DATA, MODEL, TRAIN

ITEMS = ['i1', 'i2', 'red, blue', 'say "hi"', "o'neil", '"hi" he', '[x]', 'ümlaut', '=1+1', 'all', 'i3', 'i4']
# User u0 has three items, `new` has two.
HISTORIES = {'u0': [1, 2, 3], 'new': [4, 5], 'a,b': [6, 7, 8, 9], 'all': [10, 11, 12, 1]}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A folder with a model that is not trained, on a log with odd ids."""
    dataset = SequenceDataset(
        name='odd', items=np.concatenate(list(HISTORIES.values())).astype(np.int32), offsets=np.array([0, 3, 5, 9, 13]),
        user_ids=TextIds.of(HISTORIES), item_ids=TextIds.of(ITEMS), fingerprint='odd',
    )
    path = tmp_path_factory.mktemp('model') / 'model'
    network, params = init_network(MODEL, len(ITEMS), seed=1)
    save_model(
        path, RunConfig('interactions', MODEL, DATA, TRAIN), dataset, network.whole(params), step=1, best_epoch=1
    )
    return path


@pytest.fixture(scope='module')
def recommender(model):
    return Recommender.load(model)


def ask(model, *flags, stdin=''):
    return call(recommend.main, f'--workdir={model}', *flags, stdin=stdin)


def lines(done, code=0):
    assert done.returncode == code, done.stderr
    return [line.split('\t') for line in done.stdout.splitlines()]


def answers(frame: pl.DataFrame) -> list[tuple[str, int, str]]:
    return list(frame.select('user', 'rank', 'item').iter_rows())


@pytest.mark.parametrize('flag, ids', [
    ('"red, blue",i2', ['red, blue', 'i2']),
    (' i1 , i2', ['i1', 'i2']),
    ('say "hi",i2', ['say "hi"', 'i2']),
    ("o'neil,i2", ["o'neil", 'i2']),
    ('"say ""hi""",i2', ['say "hi"', 'i2']),
    ('["\\"hi\\" he", "i2"]', ['"hi" he', 'i2']),
    ('["[x]"]', ['[x]']),
    ('[x],ümlaut', ['[x]', 'ümlaut']),
])
def test_every_id_can_be_asked_for(model, recommender, flag, ids):
    expected = recommender.recommend(histories=[ids], k=3)
    found = lines(ask(model, f'--history={flag}', '--k=3'))
    shown = [('history', str(rank), item.replace('=', '\\x3d')) for _, rank, item in answers(expected)]
    assert [tuple(row[:3]) for row in found] == shown
    np.testing.assert_allclose([float(row[3]) for row in found], expected['score'], atol=1e-6)


def test_an_id_that_needs_quotes_is_left_out_with_a_word_on_quotes(model, recommender):
    done = ask(model, '--history=red, blue,i2', '--k=1')
    assert [row[2] for row in lines(done, code=3)] == recommender.recommend(histories=[['i2']], k=1)['item'].to_list()
    assert "2 of 3 item ids are not in the log and are skipped; the first is 'red'" in done.stderr
    assert 'a JSON list' in done.stderr


def test_all_users_go_to_a_file_of_each_kind(model, recommender, tmp_path):
    expected = recommender.recommend(users='all', k=2)
    assert expected['user'].unique(maintain_order=True).to_list() == list(HISTORIES)
    readers = {'.parquet': pl.read_parquet, '.csv': pl.read_csv, '.jsonl': pl.read_ndjson}
    for ending, read in readers.items():
        done = ask(model, '--users=all', '--k=2', f'--output={tmp_path}/all{ending}')
        assert (done.returncode, done.stdout) == (0, '')
        found = read(tmp_path / f'all{ending}')
        assert found.columns == expected.columns and answers(found) == answers(expected)
        np.testing.assert_allclose(found['score'], expected['score'], rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['all.csv', 'all.jsonl', 'all.parquet']


def test_users_come_from_a_file_and_from_stdin(model, recommender, tmp_path):
    (tmp_path / 'users.txt').write_text('\ufeffnew\r\n\r\na,b\n', encoding='utf-8')
    expected = answers(recommender.recommend(users=['new', 'a,b'], k=2))
    for flags, stdin in (
        ([f'--users={tmp_path}/users.txt'], ''), ([f'--users_file={tmp_path}/users.txt'], ''),
        (['--users=-'], 'new\na,b\n'), (['--users_file=-'], 'new\na,b\n'), (['--users=["new", "a,b"]'], ''),
        (['--users=new,"a,b"'], ''),
    ):
        found = lines(ask(model, *flags, '--k=2', stdin=stdin))
        assert [(user, int(rank), item) for user, rank, item, _ in found] == [
            (user, rank, item.replace('=', '\\x3d')) for user, rank, item in expected
        ]
    assert answers(recommender.recommend(users=['all'], k=1))[0][0] == 'all'  # a user of this name, by a JSON list
    assert lines(ask(model, '--users=["all"]', '--k=1'))[0][0] == 'all'


def test_a_user_with_two_events_is_answered(model, recommender):
    expected = recommender.recommend(users=['new'], k=1)
    assert lines(ask(model, '--users=new', '--k=1'))[0][:2] == ['new', '1']
    assert expected['reason'].to_list() == ['model']


def test_given_items_are_left_out_or_chosen_from(model, tmp_path):
    everything = [row[2] for row in lines(ask(model, '--users=u0', '--k=12'))]
    exclude = json.dumps([everything[0], 'i3'])
    left = [row[2] for row in lines(ask(model, '--users=u0', '--k=12', f'--exclude={exclude}'))]
    assert left == [item for item in everything[1:] if item != 'i3']
    (tmp_path / 'sold.txt').write_text(f'{everything[0]}\ni3\n')
    assert [row[2] for row in lines(ask(model, '--users=u0', '--k=12', f'--exclude={tmp_path}/sold.txt'))] == left
    only = [row[2] for row in lines(ask(model, '--users=u0', '--k=12', '--only=i4,i2,i1', '--exclude_seen'))]
    assert only == ['i4']  # i1 and i2 are in the history
    done = ask(model, '--users=u0', '--k=2', '--exclude=i3,gone')
    assert len(lines(done, code=3)) == 2
    assert "1 of 2 item ids are not in the log and are skipped; the first is 'gone'" in done.stderr


def test_histories_of_a_file_are_named_by_user_or_line(model, recommender, tmp_path):
    (tmp_path / 'h.jsonl').write_text(
        '["i1", "red, blue"]\n\n{"user": "me", "history": ["i3"]}\n{"history": []}\n["nothing"]\n'
    )
    done = ask(model, f'--histories={tmp_path}/h.jsonl', '--k=2', f'--output={tmp_path}/out.parquet')
    assert done.returncode == 3 and "1 of 4 item ids" in done.stderr and "'nothing'" in done.stderr
    found = pl.read_parquet(tmp_path / 'out.parquet')
    expected = recommender.recommend(histories=[['i1', 'red, blue'], ['i3'], [], []], k=2)
    assert found['item'].to_list() == expected['item'].to_list()
    assert found['user'].to_list() == ['1', '1', 'me', 'me', '4', '4', '5', '5']
    assert found['reason'].to_list() == ['model'] * 4 + ['popularity'] * 4


def test_many_histories_are_answered_in_parts_under_their_names(model, monkeypatch, tmp_path):
    monkeypatch.setattr(recommend, 'AT_ONCE', 3)
    names = [f'n{k}' for k in range(7)]
    stdin = ''.join(json.dumps({'user': name, 'history': ['i1']}) + '\n' for name in names)
    done = ask(model, '--histories=-', '--k=1', f'--output={tmp_path}/out.csv', stdin=stdin)
    assert done.returncode == 0 and pl.read_csv(tmp_path / 'out.csv')['user'].to_list() == names
    # Unknown ids of the parts are counted together, those that all parts leave out once.
    stdin = '["i1", "x"]\n' * 7
    done = ask(model, '--histories=-', '--k=1', '--exclude=gone,i4', f'--output={tmp_path}/out.csv', stdin=stdin)
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if 'skipped' in line] == [
        "warning: 7 of 14 item ids are not in the log and are skipped; the first is 'x'",
        "warning: 1 of 2 item ids are not in the log and are skipped; the first is 'gone'",
    ]


@pytest.mark.parametrize('flags, text', [
    ([], 'give one of --users'),
    (['--users=all', '--history=i1'], 'give one of --users'),
    (['--users='], '--users: no id given'),
    (['--history=[1, null]'], 'which is no id'),
    (['--history=[x, y]'], 'is no JSON list'),
    (['--users_file=absent'], 'absent cannot be read'),
    (['--users=all', '--k=0'], '--k=0: write whole numbers from 1'),
    (['--users=all', '--k=5,10'], 'give one number'),
    (['--users=all', '--output=out.xlsx'], 'none of .parquet, .csv, .jsonl'),
    (['--users=all', '--output=absent/out.csv'], 'there is no folder'),
    (['--histories=-'], 'holds no history'),
])
def test_what_cannot_be_asked_is_refused_in_a_sentence(model, flags, text):
    done = ask(model, *flags)
    assert (done.returncode, done.stdout) == (1, '') and text in done.stderr and done.stderr.startswith('error: ')


@pytest.mark.parametrize('line, text', [
    ('{"user": "u"}', 'line 2 has no "history"'), ('"i1"', 'not a list of ids'), ('i1,i2', 'line 2 is no JSON list'),
])
def test_a_broken_line_is_named_and_leaves_no_file(model, tmp_path, line, text):
    done = ask(model, '--histories=-', f'--output={tmp_path}/out.csv', stdin=f'["i1"]\n{line}\n')
    assert done.returncode == 1 and text in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('ending', ['.parquet', '.csv', '.jsonl'])
def test_a_table_that_fails_midway_leaves_the_old_file(tmp_path, ending):
    path = tmp_path / f'table{ending}'
    path.write_text('old')

    def frames():
        yield pl.DataFrame({'a': [1]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(path, frames())
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == 'old'
    write_table(path, (pl.DataFrame({'a': [k]}) for k in (1, 2)))
    assert path.read_bytes() != b'old'


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match='cannot be written'):
        write_table(tmp_path / 'absent' / 'a.csv', [pl.DataFrame({'a': [1]})])
