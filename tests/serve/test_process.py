"""The command as a process: reloads under load lose no request, and a kill loses no acknowledged event."""
import asyncio
import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from experiments.bench.http_load import load
from ssd4rec_jax.run.model_folder import save_model

ITEMS = [f'item é{n}' for n in range(30)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(small, tmp_path):
    """Two models that read short histories, so that little is compiled for them, and a link to the first."""
    config = dataclasses.replace(small.config, data=dataclasses.replace(small.config.data, max_history=64))
    for name, step in ('first', 7), ('second', 8):
        save_model(
            tmp_path / name, config, small.dataset, small.network.whole(small.params), step=step, best_epoch=1,
            followers=small.followers,
        )
    (tmp_path / 'model').symlink_to('first')
    return tmp_path


class Process:
    """`ssd4rec serve` on a free port, ready when this is made."""

    def __init__(self, model, *more):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        flags = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'experiments.serve', f'--model={model}', f'--port={self.port}', *more], cwd=ROOT,
            env={**os.environ, 'XLA_FLAGS': flags}, stderr=subprocess.PIPE, text=True,
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if 'ready' in line:
                return
        raise AssertionError(''.join(self.said))

    def get(self, path):
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}{path}') as answer:
            return answer.read().decode()

    def step(self):
        return json.loads(self.get('/ready'))['step']

    async def load(self, path, bodies, **how):
        return await load('127.0.0.1', self.port, path, iter(bodies), **how)

    def end(self, number):
        self.process.send_signal(number)
        self.said += self.process.stderr.readlines()
        return self.process.wait(30)


@pytest.fixture
def started():
    """Starts processes, none of which outlives the test."""
    found = []
    yield lambda *how: found.append(Process(*how)) or found[-1]
    for server in found:
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()


def recommend_bodies():
    return (json.dumps({'users': [100 + n % 60], 'k': 3}).encode() for n in itertools.count())


async def reloaded_under_load(server, folder):
    """What a load saw while the model was changed twice, and the steps that answered before and after."""
    steps = [server.step()]
    stopping = asyncio.Event()
    bodies = itertools.takewhile(lambda _: not stopping.is_set(), recommend_bodies())
    loading = asyncio.create_task(server.load('/recommend', bodies, connections=3, seconds=300))
    for change in 'link', 'hangup':
        if change == 'link':
            (folder / 'next').symlink_to('second')
            (folder / 'next').rename(folder / 'model')
        else:
            (folder / 'model').unlink()
            (folder / 'model').symlink_to('first')
            server.process.send_signal(signal.SIGHUP)
        for _ in range(600):
            await asyncio.sleep(0.1)
            if (step := await asyncio.to_thread(server.step)) != steps[-1]:
                break
        steps.append(step)
    stopping.set()
    return await loading, steps


async def killed_under_load(server):
    """The users of the events that were acknowledged before the process was killed."""
    acknowledged = []

    async def write(number):
        reader, writer = await asyncio.open_connection('127.0.0.1', server.port)
        for n in itertools.count():
            user = f'user {number} {n}'
            body = json.dumps({'events': [{'user': user, 'item': ITEMS[n % 30]}]}).encode()
            try:
                writer.write(b'POST /events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n'
                             b'content-length: %d\r\n\r\n' % len(body) + body)
                if not (await reader.readuntil(b'\r\n\r\n')).startswith(b'HTTP/1.1 200'):
                    return  # A worker whose owner has gone says so.
                assert await reader.readexactly(len(b'{"kept":1}')) == b'{"kept":1}'
            except (OSError, asyncio.IncompleteReadError):
                return
            acknowledged.append(user)

    writers = [asyncio.create_task(write(number)) for number in range(6)]
    while len(acknowledged) < 60 and not any(writer.done() for writer in writers):
        await asyncio.sleep(0.005)
    server.process.send_signal(signal.SIGKILL)
    await asyncio.gather(*writers)
    assert len(acknowledged) >= 60
    return acknowledged


@pytest.mark.slow
def test_reload_kill_and_shutdown(folder, started):
    first = started(folder / 'model')
    seen, steps = asyncio.run(reloaded_under_load(first, folder))
    assert steps == [7, 8, 7]
    assert (list(seen['status']), seen['lost']) == ([200], 0), seen
    assert 'ssd4rec_reloads_total{result="done"} 2.0' in first.get('/metrics')
    acknowledged = asyncio.run(killed_under_load(first))
    first.process.wait()

    second = started(folder / 'model')
    for start in range(0, len(acknowledged), 20):
        part = acknowledged[start:start + 20]
        body = json.dumps({'users': part}).encode()
        status = asyncio.run(second.load('/recommend', [body], connections=1, seconds=60))
        assert status['status'] == {200: 1}

    async def ended_under_load():
        loading = asyncio.create_task(second.load('/recommend', recommend_bodies(), connections=8, seconds=60))
        await asyncio.sleep(0.5)
        code = await asyncio.to_thread(second.end, signal.SIGTERM)
        return await loading, code

    seen, code = asyncio.run(ended_under_load())
    assert code == 0 and list(seen['status']) == [200] and seen['lost'] <= 8  # connections are closed between requests
    assert 'Traceback' not in ''.join(first.said + second.said)


def children(server):
    return Path(f'/proc/{server.process.pid}/task/{server.process.pid}/children').read_text().split()


def gone(processes):
    for _ in range(300):
        if not any(Path(f'/proc/{process}').exists() for process in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_workers_before_live_sessions_reload_and_end_with_their_owner(small, tmp_path, started):
    save_model(
        tmp_path / 'model', small.config, small.dataset, small.network.whole(small.params), step=7, best_epoch=1,
        followers=small.followers,
    )
    first = started(tmp_path / 'model', '--workers=2')
    assert json.loads(first.get('/ready'))['sessions'] == 'live'
    workers = children(first)
    assert len(workers) == 2
    assert len(asyncio.run(killed_under_load(first))) >= 60 and gone(workers)
    first.process.wait()

    second = started(tmp_path / 'model', '--workers=2')
    event = json.dumps({'events': [{'user': 'user 0 0', 'item': ITEMS[1]}]}).encode()
    assert asyncio.run(second.load('/events', [event], connections=1, seconds=60))['status'] == {200: 1}

    async def reloaded():
        body = json.dumps({'users': ['user 0 0', 100]}).encode()
        stopping = asyncio.Event()
        bodies = itertools.takewhile(lambda _: not stopping.is_set(), itertools.repeat(body))
        loading = asyncio.create_task(second.load('/recommend', bodies, connections=3, seconds=300))
        second.process.send_signal(signal.SIGHUP)
        for _ in range(2400):
            await asyncio.sleep(0.1)
            if 'ssd4rec_reloads_total{result="done"} 1.0' in await asyncio.to_thread(second.get, '/metrics'):
                break
        stopping.set()
        return await loading

    seen = asyncio.run(reloaded())
    assert (list(seen['status']), seen['lost']) == ([200], 0), seen
    # The load may have ended before the new model saw any of it.
    body = json.dumps({'users': ['user 0 0']}).encode()
    assert asyncio.run(second.load('/recommend', [body], connections=1, seconds=60))['status'] == {200: 1}
    metrics, workers = second.get('/metrics'), children(second)
    assert 'ssd4rec_reloads_total{result="done"} 1.0' in metrics and 'ssd4rec_sessions 1.0' in metrics
    assert second.end(signal.SIGTERM) == 0 and gone(workers)
