"""The recommender in Python: fit on a frame, ask, save, load, update, new items."""
import doctest
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import ssd4rec_jax.recommender
import ssd4rec_jax.run.saved_run
import ssd4rec_jax.train.trainer
from ssd4rec_jax import Recommender, UnknownIds, UserError
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.dataset import with_features
from ssd4rec_jax.data.examples import test_examples as the_test_examples
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, device_mesh
from ssd4rec_jax.rank.new_items import feature_vectors, neighbour_vectors
from ssd4rec_jax.rank.ranker import Ranker
from tests.packed import pack
from tests.seen import AGES
from tests.tiny import Notes

# Without the follower term, scores are products of vectors.
SMALL = {
    'model.hidden_size': 16, 'model.headdim': 8, 'model.d_state': 8, 'model.follower_weight': 0,
    'model.fit_followers': False,
    'train.max_epochs': 12,
}


def ring_log(users: int = 40, length: int = 9, items: int = 12) -> pl.DataFrame:
    """Users who go round a ring of items: the next item follows from the last one."""
    rows = [(f'u{u}', f'i{(u + t) % items}', 1000 * u + t) for u in range(users) for t in range(length)]
    return pl.DataFrame(rows, schema=['user', 'item', 'time'], orient='row')


@pytest.fixture(scope='module', autouse=True)
def one_device():
    """One of the simulated devices: the others would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ssd4rec_jax.train.trainer, ssd4rec_jax.run.saved_run):
            patch.setattr(module, 'device_mesh', lambda *_, **__: device_mesh(jax.devices()[:1]))
        yield


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    return Recommender(settings=SMALL).fit(ring_log(), workdir=tmp_path_factory.mktemp('shop') / 'run')


def rows_of(frame) -> list[tuple]:
    return frame.select('user', 'rank', 'item').rows()


def test_it_learns_what_follows(fitted):
    """User u's last item is i(u + 8), so i(u + 9) comes next."""
    frame = fitted.recommend(users=[f'u{u}' for u in range(40)], k=1)
    assert frame.columns == ['user', 'rank', 'item', 'score', 'reason']
    right = [item == f'i{(int(user[1:]) + 9) % 12}' for user, _, item in rows_of(frame)]
    assert np.mean(right) > 0.9 and set(frame['reason']) == {'model'}


def test_a_history_gives_what_its_user_gets_and_scores_are_products_of_vectors(fitted):
    history = [f'i{(3 + t) % 12}' for t in range(9)]
    by_user, by_history = fitted.recommend(users=['u3'], k=12), fitted.recommend(histories=[history], k=12)
    assert by_user['item'].to_list() == by_history['item'].to_list() and by_history['user'].to_list() == [0] * 12
    scores = dict(zip(by_user['item'], by_user['score'], strict=True))
    np.testing.assert_allclose(fitted.score([history], fitted.items)[0], [scores[i] for i in fitted.items], rtol=1e-5)
    products = (fitted.user_vectors([history]) @ fitted.item_vectors.T)[0]
    seen = np.array([item in history for item in fitted.items])
    found = fitted.score([history], fitted.items)[0]
    np.testing.assert_allclose(products[~seen], found[~seen], rtol=1e-5)
    # Each item of the history was seen once: the bias of its age and that of a single occurrence are added.
    bias, ago = fitted._saved.params['seen'], [len(history) - history.index(item) for item in history]
    added = [bias['age'][np.searchsorted(AGES, age, side='right') - 1] + bias['times'][0] for age in ago]
    at = [fitted.items.index(item) for item in history]
    np.testing.assert_allclose(found[at] - products[at], added, rtol=1e-4, atol=1e-5)
    best = fitted.similar_items('i5', k=3)
    v = fitted.item_vectors / np.linalg.norm(fitted.item_vectors, axis=1, keepdims=True)
    cosine = v @ v[fitted.items.index('i5')]
    expected = [fitted.items[n] for n in np.argsort(-cosine) if fitted.items[n] != 'i5'][:3]
    assert best['item'].to_list() == expected


def test_what_is_left_out_and_what_is_chosen_from(fitted):
    seen = fitted.recommend(users=['u0'], k=12, exclude_seen=True)
    assert set(seen['item']) == {'i9', 'i10', 'i11'} and seen['rank'].to_list() == [1, 2, 3]
    assert fitted.recommend(users=['u0'], k=12, exclude_seen=True, exclude=['i9'])['item'].to_list() == [
        item for item in seen['item'] if item != 'i9'
    ]
    some = fitted.recommend(users=['u0', 'u7'], k=5, only=['i1', 'i2'])
    assert set(some['item']) == {'i1', 'i2'} and len(some) == 4


def test_evaluating_gives_the_metrics_of_the_run_with_intervals(fitted, tmp_path):
    frame = fitted.evaluate(k=(10,))
    assert frame.columns == ['seen', 'metric', 'value', 'low', 'high'] and len(frame) == 6
    saved = fitted._saved
    ranker = Ranker(
        saved.network, saved.mesh, the_test_examples(saved.dataset), targets_per_step=64, tokens_per_row=512
    )
    expected = ranker.metrics(saved.params, the_test_examples(saved.dataset))
    values = {(seen, metric): (value, low, high) for seen, metric, value, low, high in frame.rows()}
    for metric in ('HR@10', 'NDCG@10', 'MRR@10'):
        value, low, high = values['in', metric]
        assert value == pytest.approx(expected[metric]) and low <= value <= high
    # The last of nine items on a ring of twelve is new to its user, and four items are left to rank.
    assert values['out', 'HR@10'][0] == 1.0
    lists = fitted.evaluate('valid', k=[3], seen='in', lists=True)
    assert 'coverage@3' in lists['metric'].to_list() and lists['low'].null_count() > 0


def test_unknown_ids_are_skipped_with_a_warning_and_an_empty_history_gets_what_is_popular(fitted):
    with pytest.warns(
        UnknownIds, match="2 of 3 user ids are not in the log and are skipped; the first is 'nobody'"
    ) as told:
        assert fitted.recommend(users=['nobody', 'u1', 7], k=1)['user'].to_list() == ['u1']
    warning = told[0].message
    assert (warning.argument, warning.missing, warning.asked, warning.first) == ('users', 2, 3, 'nobody')
    with pytest.warns(UserWarning, match="1 of 2 item ids .* the first is 'new'"):
        frame = fitted.recommend(histories=[['new', 'i4'], []], k=2)
    counts = ring_log()['item'].value_counts().sort('count', descending=True)
    best = set(counts.filter(pl.col('count') == counts['count'][1])['item']) | {counts['item'][0]}
    assert frame['reason'].to_list() == ['model'] * 2 + ['popularity'] * 2
    assert set(frame.filter(pl.col('user') == 1)['item']) <= best
    assert frame.filter(pl.col('user') == 1)['score'].to_list() == counts['count'].to_list()[:2]
    assert np.isnan(fitted.score([[]], ['i1'])).all()


@pytest.mark.slow
def test_frames_come_back_in_the_library_that_they_came_in(tmp_path):
    log = ring_log(users=12)
    settings = SMALL | {'train.max_epochs': 1}
    one = Recommender(settings=settings).fit(log.to_pandas(), workdir=tmp_path / 'pandas')
    assert isinstance(one.recommend(users=['u1'], k=2), pd.DataFrame)
    # The same run, which is finished.
    again = Recommender(settings=settings).fit(log.to_arrow(), workdir=tmp_path / 'pandas')
    table = again.recommend(users='all', k=2)
    assert isinstance(table, pa.Table) and table.num_rows == 24
    assert table.to_pandas().head(2)['item'].tolist() == one.recommend(users=['u0'], k=2)['item'].tolist()


def test_a_saved_model_answers_elsewhere_without_its_log(fitted, tmp_path):
    fitted.save(tmp_path / 'model')
    moved = shutil.move(tmp_path / 'model', tmp_path / 'moved')
    for file in Path(moved).iterdir():
        file.chmod(0o444)
    there = Recommender.load(moved)
    assert there.recommend(users='all', k=4).equals(fitted.recommend(users='all', k=4))
    assert pl.read_parquet(Path(moved) / 'items.parquet')['item'].to_list() == fitted.items
    fitted.save(tmp_path / 'anonymous', histories=False)
    anonymous = Recommender.load(tmp_path / 'anonymous')
    history = [['i1', 'i2']]
    assert anonymous.recommend(histories=history).equals(fitted.recommend(histories=history))
    with pytest.raises(UserError, match='saved without histories: give histories'):
        anonymous.recommend(users=['u1'])
    weights = tmp_path / 'anonymous/weights.safetensors'
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match='anonymous is damaged: weights.safetensors is not what manifest.json says'):
        Recommender.load(tmp_path / 'anonymous')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/mine.txt').write_text('x')
    with pytest.raises(UserError, match='holds mine.txt, which is no part of a saved model'):
        fitted.save(tmp_path / 'other')
    with pytest.raises(UserError, match='neither a training run .* nor a saved model'):
        Recommender.load(tmp_path / 'other')


@pytest.mark.slow
def test_an_update_learns_new_users_and_items_and_leaves_the_old_run_alone(tmp_path):
    rec = Recommender(settings=SMALL | {'train.max_epochs': 10}).fit(ring_log(), workdir=tmp_path / 'run')
    before = rec.recommend(users='all', k=3)
    more = pl.DataFrame({
        'user': ['u0', 'u0', 'new', 'new', 'new', 'new'], 'item': ['i9', 'fresh', 'i3', 'i4', 'fresh', 'i5'],
        'time': [10**6 + t for t in range(6)],
    })
    rec.update(more, workdir=tmp_path / 'updated')
    assert rec.items[-1] == 'fresh' and len(rec.items) == 13
    frame = rec.recommend(users=['new', 'u0'], k=3, exclude_seen=True)
    assert set(frame['user']) == {'new', 'u0'}
    assert not {'fresh', 'i9'} & set(frame.filter(pl.col('user') == 'u0')['item'])
    assert Recommender.load(tmp_path / 'run').recommend(users='all', k=3).equals(before)
    rates = [(c.learning_rate, c.table_learning_rate, c.max_epochs) for c in (
        rec._saved.config.train, rec.update(more.with_columns(pl.col('time') + 9))._saved.config.train
    )]
    assert rates[0] == rates[1] == (3e-5, 3e-3, 1)  # the rates of an update's update are those of an update
    # It goes on from what it knew: the ring is still known after one epoch.
    right = [item == f'i{(int(user[1:]) + 9) % 12}' for user, _, item in rows_of(
        rec.recommend(users=[f'u{u}' for u in range(1, 40)], k=1))]
    assert np.mean(right) > 0.8


@pytest.mark.slow
def test_users_whom_the_core_left_out_are_answered_from_their_events(tmp_path):
    """By name as by their history of items that were kept; without one they get what is popular."""
    rare = pl.DataFrame({
        'user': ['rare', 'rare', 'rare', 'odd'], 'item': ['i4', 'once', 'i3', 'once'], 'time': [3, 2, 1, 1],
    })
    settings = SMALL | {'data.min_interactions': 3, 'train.max_epochs': 2}
    rec = Recommender(settings=settings).fit(pl.concat([ring_log(), rare]), workdir=tmp_path / 'run')
    assert (len(rec.items), rec.num_users) == (12, 42)
    rec.save(tmp_path / 'model')
    for there in (rec, Recommender.load(tmp_path / 'model')):
        frame = there.recommend(users=['odd', 'u1', 'rare'], k=3)
        assert frame.group_by('user', maintain_order=True).first()['user'].to_list() == ['odd', 'u1', 'rare']
        assert frame['reason'].to_list() == ['popularity'] * 3 + ['model'] * 6
        by_history = there.recommend(histories=[['i3', 'i4']], k=3)
        assert frame.filter(user='rare')['item'].to_list() == by_history['item'].to_list()
        everybody = there.recommend(users='all', k=1)['user'].to_list()
        assert everybody[:40] == [f'u{u}' for u in range(40)] and set(everybody[40:]) == {'rare', 'odd'}
    more = pl.DataFrame({'user': ['rare', 'u0'], 'item': ['i5', 'i9'], 'time': [10**6, 10**6]})
    rec.update(more, workdir=tmp_path / 'updated')
    assert rec.num_users == 42 and len(rec._saved.dataset.user_ids) == 41  # `rare` is inside now, with all three events
    dataset = rec._saved.dataset
    assert [rec.items[i - 1] for i in dataset.items[dataset.offsets[-2]:]] == ['i3', 'i4', 'i5']


def test_a_log_with_more_rows_is_what_preparing_all_of_them_gives():
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 6, 60), rng.integers(0, 9, 60), np.sort(rng.integers(0, 40, 60))
    def log(part):
        return Interactions(users=users[part], items=items[part], times=times[part], source='log', time_unit='s')

    config = DataConfig(min_interactions=1)
    first = build_sequences(log(slice(0, 40)), config, name='x')
    whole, grown = build_sequences(log(slice(0, 60)), config, name='x'), extended(first, log(slice(40, 60)))
    for name in ('items', 'offsets', 'user_ids', 'item_ids', 'times'):
        np.testing.assert_array_equal(getattr(grown, name), getattr(whole, name), name)


def test_new_items_without_training(fitted, tmp_path):
    rec = Recommender.load(tmp_path_copy(fitted, tmp_path))
    rec.add_items(beside={'like3': ['i3', 'i4']})
    v = rec.item_vectors
    mean = (v[rec.items.index('i3')] + v[rec.items.index('i4')]) / 2
    cosine = v[-1] @ mean / np.linalg.norm(v[-1]) / np.linalg.norm(mean)
    assert rec.items[-1] == 'like3' and cosine > 0.9999
    rec.add_items(vectors={'copy5': v[rec.items.index('i5')]})
    scores = rec.score([['i1', 'i2']], ['i5', 'copy5'])[0]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    listed = rec.recommend(histories=[['i3', 'i4']], k=14)['item'].to_list()
    assert {'like3', 'copy5'} <= set(listed)
    rec.save(tmp_path / 'grown')
    assert Recommender.load(tmp_path / 'grown').items[-2:] == ['like3', 'copy5']
    for given, said in (
        ({'vectors': {'i5': v[0]}}, "'i5' is in the catalogue already"),
        ({'vectors': {'x': [1.0]}}, 'must be 16 finite'),
        ({}, 'give one of vectors'), ({'beside': {'x': ['nothing']}}, r"beside\['x'\]: 'nothing' is not in the log"),
        ({'features': pl.DataFrame({'name': ['a']})}, "features has no column 'item'; it has name"),
    ):
        with pytest.raises(UserError, match=said):
            rec.add_items(**given)


def tmp_path_copy(fitted, tmp_path):
    fitted.save(tmp_path / 'copy')
    return tmp_path / 'copy'


def test_vectors_from_features_are_found_again_where_features_decide():
    """Vectors that are sums of a vector per genre: ridge regression finds a new item of known genres."""
    rng = np.random.default_rng(0)
    genres = {g: rng.normal(size=6) for g in ('jazz', 'rock', 'folk', 'noise')}
    names = list(genres)
    known = [(names[n % 4], names[(n // 4) % 4]) for n in range(160)]
    vectors = np.array([genres[a] + 2 * genres[b] for a, b in known])
    frame = pl.DataFrame({'main': [a for a, _ in known], 'second': [b for _, b in known]})
    new = pl.DataFrame({'main': ['jazz', 'unheard'], 'second': ['noise', None]})
    found = feature_vectors(frame, vectors, new, ridge=1e-6)
    np.testing.assert_allclose(found[0], genres['jazz'] + 2 * genres['noise'], atol=1e-3)
    np.testing.assert_allclose(found[1], vectors.mean(axis=0), atol=1e-5)
    # Strong regularisation makes predictions short; they are as long as the vectors that are known, on the average.
    shrunk = feature_vectors(frame, vectors, frame, ridge=100.0)
    lengths = [np.linalg.norm(v, axis=1).mean() for v in (shrunk, vectors)]
    assert lengths[0] == pytest.approx(lengths[1])
    table = np.array([[0, 0], [3, 0], [0, 4]], float)
    np.testing.assert_allclose(neighbour_vectors(table, [np.array([1, 2])])[0], np.array([3, 4]) / 5 * 3.5)


@pytest.mark.parametrize('call, said', [
    (lambda r: r.recommend(), 'give either users'),
    (lambda r: r.recommend(users=['u1'], histories=[]), 'give either users'),
    (lambda r: r.recommend(users='u1'), "users is 'u1'; it must be a list of ids"),
    (lambda r: r.recommend(users=['u1'], k=0), 'k=0 must be a whole number from 1'),
    (lambda r: r.recommend(users=['u1'], k=2.5), 'k=2.5 must be a whole number'),
    (lambda r: r.recommend(histories=['i1']), "a history is 'i1'; it must be a list"),
    (lambda r: r.recommend(users=['u1'], exclude='i1'), "exclude is 'i1'; it must be a list"),
    (lambda r: r.evaluate('train'), "split='train' must be one of"),
    (lambda r: r.evaluate(k=[0]), r'k=\[0\] must be a list of whole numbers from 1 to the 12 items'),
    (lambda r: r.evaluate(k=5), 'k=5 must be a list of whole numbers'),
    (lambda r: r.recommend(histories=5), 'histories is 5; it must be a list'),
    (lambda r: r.recommend(users=['u1'], exclude_seen='no'), "exclude_seen='no' must be True or False"),
    (lambda r: r.similar_items('i1', k=0), 'k=0 must be a whole number from 1'),
    (lambda r: r.save(3), 'path=3 must be the path of a folder'),
    (lambda _: Recommender.load(None), 'path=None must be the path of a folder'),
    (lambda _: Recommender.load('x', model_shards='a'), "model_shards='a' must be a whole number"),
    (lambda _: Recommender(3), 'preset=3 must be a text'),
    (lambda _: Recommender(settings='model.num_layers=1'), 'it must be a dict of settings'),
    (lambda _: Recommender(config={}), 'config={} must be a RunConfig'),
    (lambda _: Recommender().fit(None), 'a NoneType is no table'),
    (lambda _: Recommender().fit(ring_log(), user=3), 'user=3 must be a text'),
    (lambda _: Recommender().fit(ring_log(), workdir=3), 'workdir=3 must be the path of a folder'),
    (lambda _: Recommender().fit(ring_log(), workdir=__file__), 'is a file: name a folder'),
    (lambda _: Recommender().fit(ring_log(), reporter=3), 'reporter=3 must be a Reporter'),
    (lambda r: r.update(ring_log().clear()), 'holds no rows'),
    (lambda r: r.add_items(vectors=[1]), 'it must be a dict of new ids and 16 numbers each'),
    (lambda r: r.add_items(vectors={'x': [1.0] * 16, 'y': [1.0]}), 'must be 16 finite numbers'),
    (lambda r: r.add_items(beside={'x': []}), r"beside\['x'\] is empty"),
    (lambda r: r.add_items(features=pl.DataFrame({'item': ['i1', 'x']})), "once in 'item', and a column beside it"),
    (lambda r: r.add_items(features=pl.DataFrame({'item': ['i1', 'x', 'x'], 'c': [1, 2, 3]})), 'each item once'),
    (lambda r: r.evaluate(seen='some'), "seen='some' must be one of in, out, both"),
    (lambda r: r.score([['i1']], ['nothing']), "items: 'nothing' is not in the log"),
    (lambda r: r.similar_items('nothing'), "item: 'nothing' is not in the log"),
    (lambda _: Recommender().recommend(users=['a']), 'not fitted yet: call fit'),
    (lambda _: Recommender().fit(pl.DataFrame({'user': [], 'item': [], 'time': []})), 'holds no rows'),
    (lambda _: Recommender().fit(ring_log(), user='buyer'), "buyer.*user, item, time"),
    (lambda _: Recommender().fit([1, 2]), 'frame'),
    (lambda _: Recommender('nothing').fit(ring_log()), 'nothing is unknown'),
    (lambda _: Recommender(settings={'model.layers': 1}).fit(ring_log()), "it is called 'model.num_layers' here"),
])
def test_what_cannot_be_done_is_said_in_a_sentence(fitted, call, said):
    with pytest.raises(UserError, match=said) as error:
        call(fitted)
    assert '\n' not in str(error.value)


def test_k_beyond_the_catalogue_is_cut_with_a_warning(fitted):
    with pytest.warns(UserWarning, match='k=100 is beyond the catalogue of 12 items'):
        assert len(fitted.recommend(users=['u1'], k=100)) == 12


@pytest.mark.slow
def test_it_fits_in_a_thread(tmp_path):
    """Signals are the main thread's alone."""
    done = []
    settings = SMALL | {'train.max_epochs': 1}
    thread = threading.Thread(target=lambda: done.append(Recommender(settings=settings).fit(ring_log(users=12))))
    thread.start()
    thread.join()
    assert len(done) == 1 and len(done[0].items) == 12


@pytest.mark.slow
def test_a_fit_that_is_stopped_goes_on_in_the_same_workdir(tmp_path, monkeypatch):
    class AtOnce:
        requested, release = (lambda self: True), (lambda self: None)

    settings = SMALL | {'train.max_epochs': 1, 'train.targets_per_step': 64}
    with monkeypatch.context() as patch:
        patch.setattr(ssd4rec_jax.recommender, 'StopSignals', AtOnce)
        with pytest.raises(UserError, match='stopped before the end of the first epoch, .* workdir=.* goes on'):
            Recommender(settings=settings).fit(ring_log(), workdir=tmp_path / 'run')
    rec = Recommender(settings=settings).fit(ring_log(), workdir=tmp_path / 'run')
    assert len(rec.recommend(users=['u1'], k=3)) == 3


def test_importing_the_package_starts_neither_jax_nor_polars():
    code = (
        'import sys, ssd4rec_jax; assert not {"jax", "polars", "flax"} & set(sys.modules); '
        'assert {"Recommender", "RunConfig"} <= set(dir(ssd4rec_jax)); print(ssd4rec_jax.__version__)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_the_example_in_the_docstring():
    assert doctest.testmod(ssd4rec_jax.recommender).failed == 0
    assert doctest.testmod(ssd4rec_jax.recommender).attempted > 2


# ---- Live.


def test_live_sessions_answer_as_the_recommender_does(fitted):
    live, history = fitted.live(), [f'i{t}' for t in (3, 4, 4, 5)]
    sessions = live.begin([history[:2], []])
    live.extend(sessions, [history[2:], history])
    expected = fitted.recommend(histories=[history, history], k=5, exclude_seen=True)
    found = live.recommend(sessions, k=5, exclude_seen=True)
    assert rows_of(found) == rows_of(expected)
    np.testing.assert_allclose(found['score'], expected['score'], rtol=1e-5)


# ---- Times.

TIMED = SMALL | {
    'model.time': 'decay_and_dt', 'model.num_layers': 2, 'model.bidirectional': 'last', 'train.objective': 'one_pass',
    'train.max_epochs': 2, 'train.learning_rate': 0.03, 'model.dtype': 'float32', 'model.seen_bias': False,
    'train.schedule': 'constant',
}


@pytest.fixture(scope='module')
def timed(tmp_path_factory):
    """A network that reads times, with the notes of its run."""
    notes = Notes()
    rng = np.random.default_rng(0)
    log = ring_log().with_columns(time=pl.Series(1_600_000_000 + np.cumsum(rng.integers(1, 5000, 360))))
    folder = tmp_path_factory.mktemp('timed')
    return Recommender(settings=TIMED).fit(log, workdir=folder / 'run', reporter=notes), notes.notes


@pytest.mark.slow
def test_a_user_is_recommended_to_by_the_times_of_the_log(timed, tmp_path):
    rec, notes = timed
    assert any(note.startswith('time: gaps between interactions are read; typically 2,') for note in notes)
    frame = rec.recommend(users=['u3', 'u5'], k=12)
    saved = rec._saved
    data = with_features(saved.dataset, [TIME_GAP])
    for user in (3, 5):
        events = np.arange(data.offsets[user], data.offsets[user + 1])
        batch = pack([[(0, data.items[events].tolist())]], 16, 1, gaps=lambda *_, at=events: data.gaps.numbers(at))
        read = jax.jit(lambda params, batch: plain_readout(saved.network.bind(params), batch.items, Layout.of(batch)))
        scores = read(saved.params, batch)[0, 0] @ saved.params[ITEM_EMBEDDING].T
        own = frame.filter(pl.col('user') == f'u{user}')
        at = [rec.items.index(item) + 1 for item in own['item']]
        np.testing.assert_allclose(own['score'], np.asarray(scores)[at], rtol=1e-4)
    # The same items without times have other scores, and the model can be asked for both in any order.
    history = [[f'i{(3 + t) % 12}' for t in range(9)]]
    bare = rec.recommend(histories=history, k=12)
    assert np.abs(np.sort(bare['score']) - np.sort(frame.filter(pl.col('user') == 'u3')['score'])).max() > 1e-5
    assert rec.recommend(users=['u3', 'u5'], k=12).equals(frame) and np.isfinite(rec.score(history, ['i1'])).all()
    rec.save(tmp_path / 'model')
    there = Recommender.load(tmp_path / 'model')
    assert there.recommend(users=['u3', 'u5'], k=12).equals(frame) and there.evaluate(k=[5], seen='in').equals(
        rec.evaluate(k=[5], seen='in')
    )
    rec.save(tmp_path / 'anonymous', histories=False)
    assert Recommender.load(tmp_path / 'anonymous').recommend(histories=history, k=12).equals(bare)
