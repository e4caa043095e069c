"""What is refused, and how: one sentence, a status of the client's, and never a failure of the service."""
import asyncio
import contextlib
import dataclasses
import itertools
import socket
import threading
import time
from unittest import mock

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.batches import Batches, QueueFull
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.protection import HEAD_BYTES, guarded_protocol
from ssd4rec_jax.serve.questions import Best, Question
from tests.patient import SECONDS
from tests.serve.calls import Api, calling, post
from tests.serve.conftest import LIMITS, served
from tests.serve.live_server import listening

ITEMS = [f'item é{n}' for n in range(30)]


@pytest.mark.parametrize('body, status, sentence', [
    (b'', 400, 'the body is not JSON: EOF while parsing a value at line 1 column 0'),
    (b'{"users": [1', 400, 'the body is not JSON: EOF while parsing a list at line 1 column 12'),
    (b'\xff', 400, 'the body is not JSON: '),
    (b'[' * 9000, 400, 'the body is not JSON: recursion limit exceeded'),
    (b'[]', 422, 'Input should be an object'),
    ({}, 422, 'give either users or histories'),
    ({'users': [100], 'histories': []}, 422, 'give either users or histories'),
    ({'users': 'all'}, 422, 'users: Input should be a valid array'),
    ({'users': [1.5]}, 422, 'users[0]: an id is a text or a whole number of 64 bits'),
    ({'histories': [[ITEMS[0], '']]}, 422, 'histories[0][1]: an id is a text'),
    ({'users': [True]}, 422, 'users[0]: an id is'),
    ({'users': [2**63]}, 422, 'users[0]: an id is'),
    ({'users': [100], 'k': 0}, 422, 'k: Input should be greater than or equal to 1'),
    ({'users': [100], 'k': 21}, 422, 'k is 21, and at most 20 is answered at once'),
    ({'users': [100], 'seen': True}, 422, 'seen: Extra inputs are not permitted'),
    ({'users': [100], 'why': 6}, 422, 'why: Input should be less than or equal to 5'),
    ({'users': [100] * 41}, 422, 'the number of users is 41, and at most 40 is answered at once'),
    ({'histories': [[ITEMS[0]]] * 41}, 422, 'the number of histories is 41'),
    ({'histories': [[ITEMS[0]] * 65]}, 422, 'the length of histories[0] is 65, and at most 64'),
    ({'users': [100], 'only': [ITEMS[0]] * 61}, 422, 'the length of only is 61'),
    ({'users': ['u' * 31]}, 422, 'users[0]: an id must not have more than 30 characters'),
    ({'users': [100], 'exclude': ['<script>']}, 422, "exclude[0]: '<script>' is not an item of the model"),
    (b'"' + b'a' * 20_001, 413, 'the body has more than 20000 bytes'),
])
def test_bad_requests_get_one_sentence(service, body, status, sentence):
    found, answer = post(service, '/recommend', body)
    assert found == status and list(answer) == ['error'] and '\n' not in answer['error']
    assert answer['error'].startswith(sentence)


def test_what_is_no_post_of_json_is_refused(service):
    async def ask(api: Api):
        plain = await api.client.post('/events', content=b'{}', headers={'content-type': 'text/plain'})
        return plain, await api.client.get('/recommend'), await api.client.get('/../etc/passwd'), \
            await api.client.get('/items?limit=0'), await api.client.get('/history?user=' + 'u' * 400)
    found = calling(service, ask)
    assert [answer.status_code for answer in found] == [415, 405, 404, 422, 422]
    assert all(list(answer.json()) == ['error'] for answer in found)


def test_the_page_allows_nothing_from_elsewhere(service):
    page = calling(service, lambda api: api.client.get('/'))
    policy = page.headers['content-security-policy']
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and 'unsafe' not in policy
    assert page.text.count('http') == 0


def test_health_readiness_and_figures(service):
    async def ask(api: Api):
        return await api.get('/health'), await api.get('/ready'), await api.client.get('/metrics'), \
            await api.get('/openapi.json')
    post(service, '/recommend', {'users': ['<no such user>']})
    health, ready, metrics, (_, schema) = calling(service, ask)
    assert (health, ready) == ((200, {'status': 'alive'}), (200, {'status': 'ready', 'step': 7, 'sessions': 'live'}))
    assert 'ssd4rec_requests_total{route="/recommend",status="404"}' in metrics.text
    assert 'no such user' not in metrics.text
    assert set(schema['paths']['/recommend']['post']['requestBody']['content']['application/json']['schema'][
        'properties']) >= {'users', 'histories', 'k', 'exclude', 'only'}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ITEMS[:4]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8,
)
ID = st.integers(95, 105) | st.sampled_from(ITEMS[:5]) | st.text(max_size=4) | JSON
BODY = st.fixed_dictionaries({}, optional={
    'users': st.lists(ID, max_size=4) | JSON, 'histories': st.lists(st.lists(ID, max_size=4), max_size=3) | JSON,
    'k': st.integers(-1, 25) | JSON, 'exclude': st.lists(ID, max_size=3) | JSON,
    'only': st.lists(ID, max_size=3) | JSON,
    'exclude_seen': st.booleans() | JSON, 'skip_unknown': st.booleans() | JSON, 'why': st.integers(0, 6) | JSON,
    'titles': st.booleans(),
})
EVENT = st.fixed_dictionaries({'user': ID, 'item': ID}, optional={'time': st.floats() | st.integers() | JSON})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.just('/recommend'), body=BODY | JSON | st.binary(max_size=60))
def test_no_question_makes_the_service_fail(service, path, body):
    status, answer = post(service, path, body)
    assert status < 500
    assert list(answer) == (['answers'] if status == 200 else ['error'])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.fixed_dictionaries({'events': st.lists(EVENT, max_size=3) | JSON}) | JSON)
def test_no_event_makes_the_service_fail(service, body):
    before = service._new.count
    status, answer = post(service, '/events', body)
    assert status < 500
    assert service._new.count - before == (answer['kept'] if status == 200 else 0)


class Slow:
    """A model that answers when it is let."""

    longest = 8

    def __init__(self, gate):
        self.gate = gate

    def room(self, length):
        return 100

    def answer(self, questions):
        self.gate.wait()
        return [Best([question.k], [0.0], True, question.history) for question in questions]


def test_a_full_queue_refuses_and_what_waits_is_answered(service):
    gate = threading.Event()
    batches, model = Batches(most=5), Slow(gate)

    def question(k):
        return Question([1], {}, k)

    async def within():
        first = batches.ask(model, [question(0)])
        while batches.waiting:
            await asyncio.sleep(0.001)
        waiting = [batches.ask(model, [question(n)]) for n in range(1, 6)]
        with pytest.raises(QueueFull):
            batches.ask(model, [question(9)])
        waiting[2].cancel()
        gate.set()
        found = await asyncio.gather(first, *waiting, return_exceptions=True)
        return [one if isinstance(one, BaseException) else one[0].items for one in found]

    found = asyncio.run(within())
    batches.stop()
    assert found[:3] == [[0], [1], [2]] and isinstance(found[3], asyncio.CancelledError) and found[4:] == [[4], [5]]


def test_a_busy_service_says_when_to_come_again(service, monkeypatch):
    monkeypatch.setattr(service._batches, '_most', 0)
    response = calling(service, lambda api: api.client.post('/recommend', json={'users': [100]}))
    assert response.status_code == 429 and response.headers['retry-after'] == '1'
    assert response.json() == {'error': 'too many requests wait for the model: try again in a second'}


def test_before_it_is_ready_and_when_it_takes_too_long(service, monkeypatch):
    monkeypatch.setattr(service, 'ready', False)
    assert calling(service, lambda api: api.get('/ready'))[0] == 503
    assert post(service, '/recommend', {'users': [100]})[0] == 503
    monkeypatch.undo()
    monkeypatch.setattr(service, 'limits', type(LIMITS)(request_seconds=0.01))
    monkeypatch.setattr(service._batches, 'ask', lambda *_: asyncio.get_running_loop().create_future())
    assert post(service, '/recommend', {'users': [100]}) == (
        503, {'error': 'the answer took too long: try again in a second'}
    )


def test_one_bad_question_fails_alone(service):
    class Picky(Slow):
        def answer(self, questions):
            self.gate.wait()
            if any(question.k == 13 for question in questions):
                raise ValueError('13')
            return [Best([question.k], [0.0], True, question.history) for question in questions]

    gate = threading.Event()
    batches, model = Batches(most=9), Picky(gate)

    async def within():
        waiting = [batches.ask(model, [Question([1], {}, k)]) for k in (1, 12, 13, 14)]
        gate.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(within())
    batches.stop()
    assert isinstance(found[2], ValueError) and [found[n][0].items for n in (0, 1, 3)] == [[1], [12], [14]]


HEALTH = b'GET /health HTTP/1.1\r\nhost: x\r\n\r\n'


@pytest.fixture
def client(small, tmp_path):
    """Opens a connection to a service with some limits."""
    with contextlib.ExitStack() as stack:
        def connected(**limits):
            running = served(small, tmp_path, limits=dataclasses.replace(LIMITS, **limits))
            stack.callback(running.stop)
            port = stack.enter_context(listening(running))
            return stack.enter_context(socket.create_connection(('127.0.0.1', port), timeout=SECONDS))

        yield connected


def received(connection):
    """What the server sends until it closes."""
    return b''.join(iter(lambda: connection.recv(4096), b''))


def test_a_head_that_never_ends_is_cut_off_however_often_bytes_come(client):
    slow = client(header_seconds=0.3)
    with pytest.raises(ConnectionError):
        for byte in itertools.chain(b'GET /', itertools.repeat(ord('x'))):
            slow.sendall(bytes([byte]))
            time.sleep(0.05)


def test_a_body_that_does_not_come_is_said(client):
    slow = client(body_seconds=0.3)
    slow.sendall(b'POST /events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{')
    assert b'408' in received(slow)


@pytest.mark.parametrize('odd', [
    b'GET / HTTP/1.1\r\nx: '.ljust(HEAD_BYTES + 1, b'y'), b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
])
def test_what_is_no_head_is_refused(client, odd):
    """The last byte of a large one is the one too many: bytes that are not read would take the answer back."""
    connection = client()
    connection.sendall(odd)
    assert b'400' in received(connection)


def test_a_client_that_waits_for_no_answer_is_cut_off(client):
    with client() as hasty, pytest.raises(ConnectionError):
        while True:
            hasty.sendall(HEALTH * 100)


@contextlib.contextmanager
def connected_protocol(service, **limits):
    """(protocol, the transport below it), within an event loop."""
    config = uvicorn.Config(make_app(LocalCalls(service)), timeout_keep_alive=SECONDS)
    made = guarded_protocol(dataclasses.replace(LIMITS, **limits))
    protocol = made(config=config, server_state=ServerState(), app_state={})
    transport = mock.Mock(get_extra_info=lambda _: None, is_closing=lambda: False)
    protocol.connection_made(transport)
    yield protocol, transport
    protocol.connection_lost(None)


@pytest.fixture
def cold(small, tmp_path):
    """A service that has compiled nothing."""
    running = served(small, tmp_path)
    yield running
    running.stop()


def test_a_client_that_does_not_read_is_cut_off(cold):
    async def paused(seconds):
        with connected_protocol(cold, reading_seconds=0.3) as (protocol, transport):
            protocol.pause_writing()
            await asyncio.sleep(seconds)
            protocol.resume_writing()
            await asyncio.sleep(0.3)
            return transport.abort.call_count

    assert [asyncio.run(paused(seconds)) for seconds in (0, 0.6)] == [0, 1]


def test_a_fast_client_keeps_its_connection(cold):
    """Each head is there before the event loop goes on, so that no busy machine makes the client a slow one."""
    async def asked_twice():
        with connected_protocol(cold, header_seconds=0.2) as (protocol, transport):
            for answers in 1, 2:
                protocol.data_received(HEALTH)
                while sum(b'alive' in call.args[0] for call in transport.write.call_args_list) < answers:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.4)
            return transport.close.call_count + transport.abort.call_count

    assert asyncio.run(asyncio.wait_for(asked_twice(), SECONDS)) == 0
