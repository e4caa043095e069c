"""New events: kept before they are acknowledged, read with what the model knows, the same after a restart."""
import asyncio
import dataclasses
import json

import numpy as np
import pytest

from ssd4rec_jax.config.model import TIME_GAP
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.serve.event_log import Event
from ssd4rec_jax.serve.histories import Histories, NewEvents
from ssd4rec_jax.serve.model import Model
from tests.export.runs import saved_run
from tests.serve.calls import calling, post
from tests.serve.conftest import LIMITS, ONE_DEVICE, served
from tests.serve.test_answers import assert_same, rows
from tests.waiting import until

ITEMS = [f'item é{n}' for n in range(30)]


def best(service, **asked):
    status, answer = post(service, '/recommend', asked)
    assert status == 200
    (found,) = rows(answer)
    return found


def test_events_lengthen_a_history_and_are_there_after_a_restart(small, tmp_path):
    first = served(small, tmp_path)
    known = small.dataset.items[:small.dataset.offsets[1]]  # of user 100
    events = [{'user': ' 100', 'item': ITEMS[3]}, {'user': 'new <b>', 'item': ITEMS[4], 'time': 1.7e9},
              {'user': 100, 'item': ITEMS[5]}]
    assert post(first, '/events', {'events': events}) == (200, {'kept': 3})
    lines = [json.loads(line) for line in next(tmp_path.glob('*.jsonl')).read_text().splitlines()]
    assert [(line['user'], line['item']) for line in lines] == [
        ('100', ITEMS[3]), ('new <b>', ITEMS[4]), ('100', ITEMS[5])
    ]
    longer = [ITEMS[n - 1] for n in known] + [ITEMS[3], ITEMS[5]]
    wanted = [best(first, histories=[longer]), best(first, histories=[[ITEMS[4]]])]
    assert_same([best(first, users=['100.0']), best(first, users=['new <b>'])], wanted)
    assert calling(first, lambda api: api.get('/history', user=100))[1]['items'][0] == {'item': ITEMS[5]}
    assert calling(first, lambda api: api.get('/users', search='NEW')) == (200, {'users': ['new <b>']})
    first.stop()
    second = served(small, tmp_path)
    assert_same([best(second, users=['100.0']), best(second, users=['new <b>'])], wanted)
    second.stop()


def test_events_that_come_together_share_a_write(small, tmp_path):
    running = served(small, tmp_path)
    appends, append = [], running._writer._log.append

    def slowly(events):
        appends.append(len(events))
        # The first write takes as long as it takes the other requests to come.
        until(lambda: len(appends) > 1 or len(events) + len(running._writer._queue) == 20)
        append(events)

    running._writer._log.append = slowly

    async def together(api):
        bodies = [{'events': [{'user': f'u{n}', 'item': ITEMS[n]}]} for n in range(20)]
        return await asyncio.gather(*(api.post('/events', body) for body in bodies))

    assert calling(running, together) == [(200, {'kept': 1})] * 20
    assert sum(appends) == 20 and len(appends) < 20
    running.stop()


@pytest.mark.parametrize('event, sentence', [
    ({'user': 1, 'item': 'x'}, "events[1].item: 'x' is not an item of the model"),
    ({'user': '  ', 'item': ITEMS[0]}, 'events[1].user: an id must not be blank'),
    ({'user': 'u' * 31, 'item': ITEMS[0]}, 'events[1].user: an id must not have more than 30 characters'),
    ({'user': 1, 'item': ITEMS[0], 'time': -1}, 'events[1].time: Input should be greater than or equal to 0'),
])
def test_all_events_of_a_request_are_kept_or_none(service, event, sentence):
    before = service._new.count
    good = {'user': 'somebody', 'item': ITEMS[0]}
    assert post(service, '/events', {'events': [good, event]}) == (422, {'error': sentence})
    assert service._new.count == before


def test_an_event_that_the_model_has_learnt_meanwhile_counts_once():
    saved = saved_run(mesh=ONE_DEVICE, num_layers=1)
    plain = saved.dataset
    times = 1_700_000_000_000 + 1000 * np.arange(plain.num_interactions)
    dataset = dataclasses.replace(plain, times=times, time_unit='ms')
    model = Model(dataclasses.replace(saved, dataset=dataset), longest=LIMITS.history)
    item, time = ITEMS[plain.items[2] - 1], times[2] / 1000
    new = NewEvents([
        Event('100', item, time), Event('100', item, time + 0.5), Event('100', 'of another model', time),
        Event('100', ITEMS[0], time + 1e6),
    ])
    assert Histories(model, new).of('100').items.tolist() == [*plain.items[:plain.offsets[1]], plain.items[2], 1]


def test_gaps_in_time_of_new_events_are_those_of_one_log():
    saved = saved_run(mesh=ONE_DEVICE, num_layers=1, time='decay_and_dt')
    plain = saved.dataset
    rng = np.random.default_rng(0)
    times = 1_700_000_000 + rng.integers(1, 90, plain.num_interactions).cumsum()
    dataset: SequenceDataset = dataclasses.replace(plain, times=times, time_unit='s', typical_gap=40.0)
    model = Model(dataclasses.replace(saved, dataset=dataset), longest=LIMITS.history)
    last = times[plain.offsets[1] - 1]
    new = NewEvents([Event('100', ITEMS[0], last + 40.0), Event('100', ITEMS[1], last + 160.0),
                     Event('new', ITEMS[1], 50.0), Event('new', ITEMS[1], 90.0)])
    histories = Histories(model, new)
    features = histories.of('100').features
    np.testing.assert_allclose(features[TIME_GAP][-2:], [0, np.log10(2)], atol=1e-6)
    assert len(features[TIME_GAP]) == plain.offsets[1] + 2
    assert histories.of('new').features[TIME_GAP][1] == 0
