"""The command as a process: reloads under load lose no request, and a kill loses no acknowledged event."""
import asyncio
import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from experiments.bench.http_load import load
from ssd4rec_jax.run.model_folder import save_model
from tests.processes import on_one_device, state
from tests.waiting import until, until_it_is

ITEMS = [f'item é{n}' for n in range(30)]


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
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'tests.patient', 'experiments.serve', f'--model={model}', '--port=0', *more],
            env=on_one_device(), stderr=subprocess.PIPE, text=True,
        )
        self.said = []
        for line in self.process.stderr:
            self.said.append(line)
            if ready := re.match(r'http://127\.0\.0\.1:(\d+): ready', line):
                self.port = int(ready[1])
                return
        raise AssertionError(''.join(self.said))

    def get(self, path):
        with urllib.request.urlopen(f'http://127.0.0.1:{self.port}{path}') as answer:
            return answer.read().decode()

    def step(self):
        return json.loads(self.get('/ready'))['step']

    def reloads(self):
        """How many models were taken in since the start."""
        return int(float(re.search(r'ssd4rec_reloads_total\{result="done"\} (\S+)|$', self.get('/metrics'))[1] or 0))

    async def reloaded(self, times):
        """Returns once so many models were taken in."""
        await until_it_is(lambda: asyncio.to_thread(lambda: self.reloads() >= times))

    async def load(self, path, bodies, **how):
        return await load('127.0.0.1', self.port, path, iter(bodies), seconds=math.inf, **how)

    def end(self, number):
        self.process.send_signal(number)
        self.said += self.process.stderr.readlines()
        return self.process.wait()


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
    loading = asyncio.create_task(server.load('/recommend', bodies, connections=3))
    for change in 'link', 'hangup':
        if change == 'link':
            (folder / 'next').symlink_to('second')
            (folder / 'next').rename(folder / 'model')
        else:  # The folder stays the same one, so that the watch sees nothing of it.
            for file in (folder / 'first').iterdir():
                shutil.copy(file, folder / 'file')
                (folder / 'file').rename(folder / 'second' / file.name)
            server.process.send_signal(signal.SIGHUP)
        await server.reloaded(len(steps))
        steps.append(await asyncio.to_thread(server.step))
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
        await asyncio.sleep(0.005)  # Where a writer ends too early, the number below says so.
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
    assert first.reloads() == 2
    acknowledged = asyncio.run(killed_under_load(first))
    first.process.wait()

    second = started(folder / 'model')
    for start in range(0, len(acknowledged), 20):
        part = acknowledged[start:start + 20]
        body = json.dumps({'users': part}).encode()
        status = asyncio.run(second.load('/recommend', [body], connections=1))
        assert status['status'] == {200: 1}

    async def ended_under_load():
        answered = []
        loading = asyncio.create_task(second.load('/recommend', recommend_bodies(), connections=8, answered=answered))
        while len(answered) < 80:
            await asyncio.sleep(0.01)
        code = await asyncio.to_thread(second.end, signal.SIGTERM)
        return await loading, code

    seen, code = asyncio.run(ended_under_load())
    assert code == 0 and list(seen['status']) == [200] and seen['lost'] <= 8  # connections are closed between requests
    assert 'Traceback' not in ''.join(first.said + second.said)


def children(server):
    return Path(f'/proc/{server.process.pid}/task/{server.process.pid}/children').read_text().split()


def have_ended(processes):
    return all(state(process) == 'Z' for process in processes)


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
    assert len(asyncio.run(killed_under_load(first))) >= 60
    first.process.wait()
    until(lambda: have_ended(workers))

    second = started(tmp_path / 'model', '--workers=2')
    event = json.dumps({'events': [{'user': 'user 0 0', 'item': ITEMS[1]}]}).encode()
    assert asyncio.run(second.load('/events', [event], connections=1))['status'] == {200: 1}

    async def reloaded():
        body = json.dumps({'users': ['user 0 0', 100]}).encode()
        stopping = asyncio.Event()
        bodies = itertools.takewhile(lambda _: not stopping.is_set(), itertools.repeat(body))
        loading = asyncio.create_task(second.load('/recommend', bodies, connections=3))
        second.process.send_signal(signal.SIGHUP)
        await second.reloaded(1)
        stopping.set()
        return await loading

    seen = asyncio.run(reloaded())
    assert (list(seen['status']), seen['lost']) == ([200], 0), seen
    # The load may have ended before the new model saw any of it.
    body = json.dumps({'users': ['user 0 0']}).encode()
    assert asyncio.run(second.load('/recommend', [body], connections=1))['status'] == {200: 1}
    workers = children(second)
    assert second.reloads() == 1 and 'ssd4rec_sessions 1.0' in second.get('/metrics')
    assert second.end(signal.SIGTERM) == 0
    until(lambda: have_ended(workers))
