"""What the service answers, against what the recommender says of the same run."""
import asyncio
import warnings

import numpy as np
import pytest

from ssd4rec_jax.recommender import Recommender
from tests.serve.calls import calling, post
from tests.waiting import until

ITEMS = [f'item é{n}' for n in range(30)]


@pytest.fixture(scope='module')
def recommender(small):
    found = Recommender(config=small.config)
    found._take(small)
    return found


def rows(answer):
    """[(items, scores, reason)] of a service's answer."""
    return [
        ([entry['item'] for entry in one['items']], [entry['score'] for entry in one['items']], one['reason'])
        for one in answer['answers']
    ]


def expected(recommender, **asked):
    """The same from the recommender's frame."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        frame = recommender.recommend(**asked)
    return [
        (own['item'].to_list(), own['score'].to_list(), own['reason'][0] if len(own) else None)
        for own in frame.partition_by('user', maintain_order=True)
    ]


def assert_same(found, wanted):
    assert [(items, reason) for items, _, reason in found] == [(items, reason) for items, _, reason in wanted]
    for (_, ours, _), (_, theirs, _) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('options', [
    {}, {'k': 20}, {'exclude_seen': True}, {'exclude': ITEMS[:20]}, {'only': ITEMS[3:12]},
    {'only': ITEMS[3:12], 'exclude': ITEMS[5:8], 'exclude_seen': True, 'k': 3},
])
def test_answers_are_those_of_the_recommender(service, recommender, options):
    asked = {'k': 10, **options}
    for whom in {'users': [100, 101, 159, 130, 131]}, {'histories': [ITEMS[:7], [], [ITEMS[3]] * 3]}:
        status, answer = post(service, '/recommend', {**whom, **asked})
        assert status == 200
        assert_same(rows(answer), expected(recommender, **whom, **asked))


def test_requests_that_come_together_get_what_each_gets_alone(service, small, monkeypatch):
    histories = [ITEMS[n:n + 1 + n % 9] for n in range(25)]
    bodies = [{'histories': [history], 'k': 1 + n % 5} for n, history in enumerate(histories)]
    bodies += [{'users': list(range(100, 140)), 'only': ITEMS[:9]}, {'users': [141], 'exclude_seen': True}]
    steps, asked = [], 25 + 40 + 1

    def observe(size):
        steps.append(size)
        # The first step takes as long as it takes the others to come.
        until(lambda: len(steps) > 1 or size + service._batches.waiting == asked)

    async def together(api):
        monkeypatch.setattr(service._batches, '_observe', observe)
        return await asyncio.gather(*(api.post('/recommend', body) for body in bodies))

    found = calling(service, together)
    monkeypatch.undo()
    assert sum(steps) == asked and len(steps) < 27  # some steps held several requests
    for body, (status, answer) in zip(bodies, found, strict=True):
        assert status == 200
        _, alone = post(service, '/recommend', body)
        assert_same(rows(answer), rows(alone))


def test_why_names_the_nearest_items_of_the_history(service, recommender):
    _, answer = post(service, '/recommend', {'histories': [[ITEMS[1], ITEMS[2], ITEMS[1]]], 'k': 2, 'why': 5})
    vectors = recommender.item_vectors / np.linalg.norm(recommender.item_vectors, axis=1, keepdims=True)
    for entry in answer['answers'][0]['items']:
        cosine = vectors[[1, 2]] @ vectors[ITEMS.index(entry['item'])]
        order = np.argsort(-cosine)
        assert [why['item'] for why in entry['why']] == [ITEMS[1 + n] for n in order]
        np.testing.assert_allclose([why['cosine'] for why in entry['why']], cosine[order], rtol=1e-5)


def test_ids_may_be_written_in_any_way_that_the_log_reads(service):
    _, plain = post(service, '/recommend', {'users': [100], 'k': 3})
    for user in '100', ' 100', '100.0':
        assert post(service, '/recommend', {'users': [user], 'k': 3})[1]['answers'][0]['items'] == \
            plain['answers'][0]['items']


def test_unknown_ids_are_refused_or_left_out(service, recommender):
    status, answer = post(service, '/recommend', {'users': [100, 'nobody']})
    assert (status, answer) == (404, {'error': "users[1]: 'nobody' is neither in the log nor in any event"})
    status, answer = post(service, '/recommend', {'histories': [[ITEMS[0], 'x']]})
    assert (status, answer) == (422, {'error': "histories[0][1]: 'x' is not an item of the model"})
    body = {'histories': [[ITEMS[0], 'x', ITEMS[1]]], 'exclude': ['y'], 'k': 5}
    status, answer = post(service, '/recommend', {**body, 'skip_unknown': True})
    assert status == 200
    assert_same(rows(answer), expected(recommender, **body))
    assert post(service, '/recommend', {'users': ['nobody', 100], 'skip_unknown': True})[1]['answers'][0]['user'] == 100
