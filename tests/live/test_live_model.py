"""Sessions that grow by events, beside the same histories read anew.

What is read anew is TopItems, which has tests of its own; gaps in time are measured here by hand.
"""
import jax
import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.errors import UnknownIds, UserError
from ssd4rec_jax.live import LiveModel, Session
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import load_run
from tests.export.runs import saved_run
from tests.tiny import tiny_dataset

ITEMS = 30
EVENTS = len(tiny_dataset().items)
BEGUN = (3, 0, 1)  # the events that each session begins with
APPENDS = 30


def run(times=True, **model):
    moments = np.sort(np.random.default_rng(3).integers(0, 10**6, EVENTS)) if times else None
    return saved_run(times=moments, mesh=device_mesh(jax.devices()[:1]), **model)


def number(gap, typical):
    return min(np.log10((1 + max(gap, 0) / typical) / 2), 3.0)


def names(saved, items):
    return [saved.dataset.item_ids[int(i) - 1] for i in items]


def scores_of(frame, users):
    """float [users, ITEMS], by internal id, of a frame of all items."""
    found = np.zeros((users, ITEMS))
    for user, item, score in frame.select('user', 'item', 'score').iter_rows():
        found[user, int(item.removeprefix('item é'))] = score
    return found


def grown(saved, rng):
    """(live model, histories, their times, scores after each event [APPENDS, sessions, ITEMS])."""
    live = LiveModel(saved)
    histories = [rng.integers(1, ITEMS + 1, n + APPENDS) for n in BEGUN]
    times = [np.cumsum(rng.integers(0, 9000, len(h))) - 5000 * (rng.random(len(h)) < 0.1) for h in histories]
    sessions = live.begin(
        [names(saved, h[:n]) for h, n in zip(histories, BEGUN, strict=True)],
        times=[t[:n].tolist() for t, n in zip(times, BEGUN, strict=True)],
    )
    found = []
    for k in range(APPENDS):
        at = [n + k for n in BEGUN]
        live.append(
            sessions, names(saved, [h[a] for h, a in zip(histories, at, strict=True)]),
            [int(t[a]) for t, a in zip(times, at, strict=True)],
        )
        sessions = [live.load(s.to_arrays()) for s in sessions] if k == 11 else sessions
        found.append(scores_of(live.recommend(sessions, k=ITEMS), len(sessions)))
    return live, histories, times, np.stack(found)


FULL = dict(seen_bias=True, follower_weight=2.0)
KINDS = [
    dict(num_layers=2, beta=0.0, time='dt', **FULL),
    dict(num_layers=1, time='decay_and_dt', follower_weight=2.0),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in [
        dict(num_layers=2, bidirectional='last', seen_bias=True),
        dict(num_layers=2, time='dt', **FULL),  # reads again
        dict(num_layers=1), dict(num_layers=1, backward_order='aligned', **FULL),
        dict(num_layers=1, scores='cosine', norm_embedding=False, **FULL), dict(max_history=7, num_layers=1, **FULL),
    ]),
]


@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_scores_after_each_of_30_events_are_those_of_the_history_read_anew(kind):
    saved = run(**kind)
    live, histories, times, found = grown(saved, np.random.default_rng(0))
    assert bool(live.recomputes) == ('max_history' in kind or (kind.get('num_layers') == 2 and kind.get('beta') != 0
                                                               and kind.get('bidirectional') != 'last'))
    typical = saved.dataset.measured_gaps().typical
    assert typical > 0
    read, gaps = [], []
    for k in range(1, APPENDS + 1):
        for h, t, n in zip(histories, times, BEGUN, strict=True):
            read.append(h[:n + k])
            gaps.append(np.float32([0, *(number(g, typical) for g in np.diff(t[:n + k]))]))
    features = {TIME_GAP: gaps} if 'time' in kind else {}
    items, scores = Answers(saved).top(read, k=ITEMS, features=features)
    expected = np.zeros((len(read), ITEMS))
    np.put_along_axis(expected, items - 1, scores, axis=1)
    found = found.reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope='module')
def quick():
    return run(num_layers=1, time='dt', **FULL)


@pytest.mark.slow
def test_it_answers_as_the_recommender_does(quick):
    """Histories without times and users with the log's, what is left out and what is chosen from."""
    live, answers, ids = LiveModel(quick), Answers(quick), quick.dataset.item_ids.tolist()
    assert live.recomputes == '' and live.time_unit == 's'
    histories = [ids[:3], [], [ids[2], ids[2]]]
    for wish in ({}, dict(exclude_seen=True, exclude=ids[5:9]), dict(only=ids[1:4])):
        for asked in (dict(histories=histories), dict(users=[100, 130])):
            expected = pl.concat(answers.best(**asked, k=5, **wish))
            found = live.recommend(live.begin(**asked), 5, **wish)
            assert found.drop('user', 'score').equals(expected.drop('user', 'score'))
            np.testing.assert_allclose(found['score'], expected['score'], rtol=1e-5, atol=1e-5)
    with pytest.warns(UnknownIds, match="1 of 2 item ids"):
        sessions = live.begin([[ids[0], 'new']])
    assert sessions[0].length == 1


@pytest.mark.parametrize('devices, shards', [(1, 1), (2, 1), (2, 2)])
def test_a_table_that_a_device_holds_whole_is_not_copied(devices, shards):
    saved = saved_run(mesh=device_mesh(jax.devices()[:devices], shards), num_layers=1, seen_bias=True)
    live, ids = LiveModel(saved), saved.dataset.item_ids.tolist()
    found = live.recommend(live.begin([ids[3:6]]), k=ITEMS)
    expected = pl.concat(Answers(saved).best(histories=[ids[3:6]], k=ITEMS))
    np.testing.assert_allclose(scores_of(found, 1), scores_of(expected, 1), rtol=1e-5, atol=1e-5)
    table = live._stepping._params['item_embedding']
    held = [part.data.unsafe_buffer_pointer() for part in saved.params['item_embedding'].addressable_shards]
    assert (table.unsafe_buffer_pointer() in held) == (shards == 1) and table.shape == (ITEMS + 1, table.shape[1])


def test_a_user_of_the_log_goes_on_with_the_gap_since_its_last_event(quick):
    live, dataset = LiveModel(quick), quick.dataset
    part = slice(dataset.offsets[7], dataset.offsets[8])
    (user,) = live.begin(users=[107])
    (history,) = live.begin([names(quick, dataset.items[part])], times=[dataset.times[part].tolist()])
    late = int(dataset.times[part][-1]) + 40_000
    for session in (user, history):
        live.append([session], [dataset.item_ids[4]], [late])
    np.testing.assert_allclose(user.state, history.state, rtol=1e-5, atol=1e-6)
    (other,) = live.begin(users=[107])
    live.append([other], [dataset.item_ids[4]])
    assert np.abs(other.state - user.state).max() > 1e-3


def test_a_model_without_histories_knows_the_typical_gap(quick, tmp_path):
    save_model(
        tmp_path / 'model', quick.config, quick.dataset, quick.network.whole(quick.params), step=1, best_epoch=1,
        histories=False, followers=quick.followers,
    )
    ids, times = quick.dataset.item_ids.tolist()[:3], [[10, 40_000, 40_005]]
    (there,), (here,) = (LiveModel(s).begin([ids], times=times) for s in (load_run(tmp_path / 'model'), quick))
    np.testing.assert_allclose(there.gaps, here.gaps, rtol=1e-6)
    assert np.ptp(here.gaps) > 0.1


def test_a_session_is_the_same_alone_and_among_others_and_after_a_disk(quick, tmp_path):
    live, rng = LiveModel(quick), np.random.default_rng(1)
    histories = [names(quick, rng.integers(1, ITEMS + 1, n)) for n in (9, 2, 17, 1, 70)]
    together = live.begin(histories)
    for session, history in zip(together, histories, strict=True):
        (alone,) = live.begin([history])
        np.testing.assert_allclose(session.state, alone.state, rtol=1e-5, atol=1e-6)
        stored = session.to_arrays()
        np.savez(tmp_path / 'session.npz', **stored)
        again = live.load(dict(np.load(tmp_path / 'session.npz'))).to_arrays()
        for name, array in stored.items():
            np.testing.assert_array_equal(again[name], array)
            assert again[name].dtype == array.dtype
    assert together[4].length == 70 and len(together[4].items) == 8


def test_what_cannot_be_done_is_said_and_changes_nothing(quick):
    live, ids = LiveModel(quick), quick.dataset.item_ids.tolist()
    (session,) = live.begin([ids[:2]])
    before = session.to_arrays()
    for call, said in (
        (lambda: live.append([session, session], ids[:2]), 'named twice'),
        (lambda: live.append([session], ids[:2]), '1 sessions, 2 lists'),
        (lambda: live.append([session], ids[:1], ['soon']), 'numbers in the unit of the log'),
        (lambda: live.begin(), 'either histories'),
        (lambda: live.load({**before, 'state': before['state'][1:]}), 'a session of another model'),
        (lambda: Session.from_arrays({'state': before['state']}), 'no arrays of a session'),
    ):
        with pytest.raises(UserError, match=said):
            call()
    (again,) = live.begin([ids[:2]])
    for name, array in session.to_arrays().items():
        np.testing.assert_array_equal(array, before[name])
        np.testing.assert_array_equal(again.to_arrays()[name], array)
