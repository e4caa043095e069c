"""HTTP workers before the owner: they answer as it does, and a killed one costs its own requests alone."""
import asyncio
import itertools
import json
import math
import os
import signal
import socket
import subprocess

import httpx
import pytest

from experiments.bench.http_load import load, workers_of
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.bodies import Search
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.server import _listening
from ssd4rec_jax.serve.worker import RemoteCalls
from ssd4rec_jax.serve.workers import Workers, _End
from tests.patient import SECONDS
from tests.serve.calls import calling
from tests.serve.conftest import LIMITS
from tests.serve.test_answers import ITEMS


async def connected(service):
    """(the owner's end of a connection, the worker's)."""
    ours, theirs = socket.socketpair()
    loop, end, remote = asyncio.get_running_loop(), _End(LocalCalls(service)), RemoteCalls(LIMITS)
    await loop.create_connection(lambda: end.frames, sock=ours)
    await loop.create_connection(lambda: remote.frames, sock=theirs)
    return end, remote


@pytest.mark.slow
def test_a_failure_of_the_owner_is_answered(service, monkeypatch):
    monkeypatch.setattr(service, 'find_users', lambda asked: 1 / 0)

    async def asked():
        end, remote = await connected(service)
        found = await asyncio.wait_for(remote.call('/users', Search(search='', limit=3)), SECONDS)
        end.frames._transport.close()
        return found

    found = asyncio.run(asked())
    assert found.status == 500 and b'the service failed at this request' in found.content


def test_a_worker_answers_as_the_owner_does(service):
    asked = [
        ('/recommend', {'users': [100, 'é <b>'], 'skip_unknown': True, 'why': 2}),
        ('/recommend', {'histories': [ITEMS[:4]], 'only': ITEMS[:9], 'exclude_seen': True}),
        ('/recommend', {'users': ['nobody']}), ('/recommend', {'k': 0}), ('/events', b'{"events": ['),
        ('/events', {'events': [{'user': 'é <b>', 'item': ITEMS[0]}]}),
    ]
    looked_at = [('/ready', {}), ('/about', {}), ('/items', {'search': 'é1'}), ('/users', {'search': '1', 'limit': 3}),
                 ('/history', {'user': '100'}), ('/history', {'user': 'u' * 40}), ('/health', {})]

    async def through_a_worker(api):
        end, remote = await connected(service)
        transport = httpx.ASGITransport(make_app(remote), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url='http://worker') as there:
            api.client, own = there, api.client
            found = []
            for client in own, there:
                api.client = client
                found.append([*[await api.post(path, body) for path, body in asked],
                              *[await api.get(path, **parameters) for path, parameters in looked_at]])
            together = await asyncio.gather(*(api.post('/recommend', {'users': [100 + n]}) for n in range(20)))
            metrics = await there.get('/metrics')
            end.frames._transport.close()
            await remote.gone.wait()
            gone = await there.post('/recommend', json={'users': [100]})
        api.client = own
        return found, together, metrics.text, gone

    (own, there), together, metrics, gone = calling(service, through_a_worker)
    assert [status for status, _ in own] == [200, 200, 404, 422, 400, 200, *[200] * 5, 422, 200]
    assert there[1:] == own[1:]
    assert there[0][1]['answers'][0] == own[0][1]['answers'][0]  # the other user has an event by then
    assert [answer['answers'][0]['user'] for _, answer in together] == list(range(100, 120))
    assert 'ssd4rec_requests_total{route="/events",status="400"} 2.0' in metrics
    assert (gone.status_code, gone.headers['retry-after']) == (503, '1') and 'has ended' in gone.text


def test_a_worker_that_cannot_be_started_is_tried_again(service, monkeypatch, capsys):
    tries = []

    def fail(self):
        tries.append(1)
        raise OSError(12, 'Cannot allocate memory')

    monkeypatch.setattr(Workers, '_start', fail)
    monkeypatch.setitem(Workers._keep.__globals__, '_LEAST_SECONDS', 0.01)

    async def tried():
        workers = Workers(LocalCalls(service), socket.socket(), 1, page=False, restarted=lambda: None)
        while len(tries) < 3:
            await asyncio.sleep(0.01)
        await workers.stop()

    asyncio.run(asyncio.wait_for(tried(), SECONDS))
    assert 'an HTTP worker cannot be started (Cannot allocate memory): it is tried again' in capsys.readouterr().err


def test_a_port_in_use_and_an_owner_without_workers_are_said():
    with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(UserError, match='cannot listen at --host=127'):
        _listening('127.0.0.1', taken.getsockname()[1], 8)
    with subprocess.Popen(['sleep', '60']) as alone:
        with pytest.raises(ConfigError, match=f'--owner={alone.pid} has no workers: start it with --workers'):
            workers_of(alone.pid)
        alone.kill()


async def killed_under_load(service):
    """(what a load of questions saw, users of acknowledged events, restarts) while workers were killed."""
    listener, restarts = socket.create_server(('127.0.0.1', 0)), []
    port = listener.getsockname()[1]
    workers = Workers(LocalCalls(service), listener, 2, page=False, restarted=lambda: restarts.append(1))
    acknowledged = []

    async def write(number):
        """Events one after another, each over a connection of its own."""
        for n in itertools.count():
            if len(restarts) >= 2:
                return
            user = f'load {number} {n}'
            body = json.dumps({'events': [{'user': user, 'item': ITEMS[n % 30]}]}).encode()
            seen = await load('127.0.0.1', port, '/events', iter([body]), connections=1, seconds=math.inf)
            if seen['status'] == {200: 1}:
                acknowledged.append(user)
            else:
                assert seen['lost'] == 1, seen

    async def kill():
        killed = set()
        while len(restarts) < 2:
            await asyncio.sleep(0.05)
            process = next((p for p in workers._processes if p.pid not in killed), None)
            enough = len(acknowledged) > 10 * (1 + len(killed)) and len(killed) == len(restarts)
            if enough and process is not None and len(workers._processes) == 2:
                killed.add(process.pid)
                os.kill(process.pid, signal.SIGKILL)

    try:
        writers = [asyncio.create_task(write(n)) for n in range(4)]
        await asyncio.wait_for(kill(), 2 * SECONDS)
        await asyncio.gather(*writers)
        bodies = (json.dumps({'users': [user]}).encode() for user in acknowledged)
        seen = await load('127.0.0.1', port, '/recommend', bodies, connections=4, seconds=math.inf)
    finally:
        listener.close()
        await workers.stop()
    return seen, acknowledged, len(restarts)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_no_acknowledged_event_is_lost(service):
    seen, acknowledged, restarts = asyncio.run(killed_under_load(service))
    assert restarts >= 2 and len(acknowledged) > 10
    assert seen['status'] == {200: len(acknowledged)} and seen['lost'] == 0
