"""Live sessions behind the service: they answer as the history read anew does, are bounded, and survive a restart."""
import dataclasses

import numpy as np
import pytest

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.live import LiveModel
from ssd4rec_jax.serve.event_log import Event
from ssd4rec_jax.serve.histories import Histories, NewEvents
from ssd4rec_jax.serve.model import Model
from ssd4rec_jax.serve.sessions import Sessions
from tests.export.runs import saved_run
from tests.serve.calls import calling, post
from tests.serve.conftest import LIMITS, ONE_DEVICE, served
from tests.serve.test_answers import ITEMS, assert_same, rows
from tests.waiting import until


def send(service, user, items):
    """Events of one user, one request for each."""
    for item in items:
        assert post(service, '/events', {'events': [{'user': user, 'item': item}]}) == (200, {'kept': 1})


def asked(service, **body):
    """[(items, scores, reason)] of the answers, and how many of them came from sessions."""
    counts = service.metrics.answers.labels('session')
    before = counts._value.get()
    status, answer = post(service, '/recommend', {'k': 20, **body})
    assert status == 200, answer
    return rows(answer), counts._value.get() - before


def history(saved, user):
    """Original ids of what the log of the small run holds of a user."""
    part = slice(*saved.dataset.offsets[user - 100:user - 98])
    return [ITEMS[n - 1] for n in saved.dataset.items[part]]


@pytest.mark.parametrize('wish', [
    {}, {'exclude_seen': True, 'k': 4}, {'exclude': ITEMS[:20]}, {'only': ITEMS[3:12], 'exclude': ITEMS[5:8]},
])
def test_sessions_answer_as_the_history_read_anew(service, small, wish):
    send(service, 103, ITEMS[5:7])
    send(service, 'a new one', [ITEMS[2], ITEMS[1], ITEMS[2]])
    users = 103, 'a new one'
    new = [[event.item for event in service._new.of(str(user))] for user in users]
    found, of_sessions = asked(service, users=[*users, 110], **wish)
    histories = [history(small, 103) + new[0], new[1], history(small, 110)]
    wanted, others = asked(service, histories=histories, **wish)
    assert (of_sessions, others) == (2, 0)
    assert_same(found, wanted)
    why = {'k': 3, 'why': 2, 'titles': True}
    one, other = (post(service, '/recommend', {**why, **whom})[1]['answers'][0]['items']
                  for whom in ({'users': [103]}, {'histories': histories[:1]}))
    assert [[near['item'] for near in entry['why']] for entry in one] == \
        [[near['item'] for near in entry['why']] for entry in other]


def test_they_are_bounded_begun_anew_and_there_after_a_restart(small, tmp_path):
    limits = dataclasses.replace(LIMITS, sessions=2)
    first = served(small, tmp_path, limits=limits)
    for user in 'a', 'b', 'c':
        send(first, user, ITEMS[:3])
    assert list(first.serving.sessions._held) == ['b', 'c']
    wanted, _ = asked(first, histories=[ITEMS[:3]])
    for user in 'b', 'a', 'c':  # 'a' takes the place of 'c', which begins anew
        found, of_sessions = asked(first, users=[user])
        assert of_sessions == 1
        assert_same(found, wanted)
    assert list(first.serving.sessions._held) == ['a', 'c']
    assert 'ssd4rec_sessions 2.0' in first.metrics.text().decode()
    first.stop()
    second = served(small, tmp_path, limits=limits)
    send(second, 'a', ITEMS[3:4])
    found, of_sessions = asked(second, users=['a'])
    assert of_sessions == 1
    assert_same(found, asked(second, histories=[ITEMS[:4]])[0])
    second.stop()


def test_a_long_history_is_taken_in_parts_while_it_is_read_anew(service, small):
    items = [ITEMS[n % 29] for n in range(150)]
    service._new.add([Event('long', item, 1.7e9) for item in items])
    assert service.serving.sessions.near('long') is None  # too far behind to answer
    service._work_ahead(service.serving)
    session = service.serving.sessions._held['long']
    until(lambda: not service.serving.sessions._missing(session))
    assert session.session.length == 150 and len(session.ahead.items) == 0 and session.ahead.events == 150
    found, of_sessions = asked(service, users=['long'])
    assert of_sessions == 1
    (scores,) = Answers(small).scores([items], ITEMS)
    assert_same(found, [([ITEMS[n] for n in np.argsort(-scores)[:20]], np.sort(-scores)[:20] * -1, 'model')])


def test_gaps_in_time_are_those_of_the_history_read_anew():
    saved = saved_run(mesh=ONE_DEVICE, num_layers=1, time='decay_and_dt')
    times = 1_700_000_000 + np.random.default_rng(0).integers(1, 90, saved.dataset.num_interactions).cumsum()
    dataset = dataclasses.replace(saved.dataset, times=times, time_unit='s', typical_gap=40.0)
    model = Model(dataclasses.replace(saved, dataset=dataset), longest=LIMITS.history)
    last = int(times[dataset.offsets[1] - 1])
    new = NewEvents([Event('100', ITEMS[0], last + 40.0), Event('100', 'of another model', last + 50.0)])
    histories = Histories(model, new)
    sessions = Sessions(model.live, histories, 8)
    one = sessions.near('100')
    sessions.advance([one])
    new.add([Event('100', ITEMS[1], last + 400.0), Event('new', ITEMS[2], 60.0)])
    assert sessions.near('100') is one
    sessions.advance([one, sessions.near('new')])
    for user in '100', 'new':
        read = histories.of(user)
        of_session = model.live.scores([sessions.near(user).session])
        features = {name: [values] for name, values in read.features.items()}
        anew = model.answers.top.scores([read.items], np.arange(1, 31), features=features)
        np.testing.assert_allclose(of_session, anew, rtol=1e-5, atol=1e-5 * np.abs(anew).max())


def test_a_model_that_cannot_step_reads_anew_and_says_so(tmp_path):
    saved = saved_run(mesh=ONE_DEVICE, num_layers=2)
    running = served(saved, tmp_path)
    send(running, 'a', ITEMS[:2])
    sessions = running.serving.sessions
    assert sessions.near('a') is None and len(sessions) == 0 and not sessions.behind
    assert calling(running, lambda api: api.get('/ready'))[1]['sessions'] == LiveModel(saved).recomputes != ''
    running.stop()
