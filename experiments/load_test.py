"""Load test of a running service: latencies and requests per second by the number of connections.

    python -m experiments.load_test --url=http://127.0.0.1:8080 --users=FILE.txt --connections=1,16,64,256 --seconds=10
    python -m experiments.load_test --connections=16 --seconds=60 --fault=kill --every=5 --owner=PID

Each connection sends its next request when it has the answer to the one before. The client is one process that speaks
HTTP over raw sockets, and shares the cores with the service. --users names a file of user ids, one a line; without it
the service is asked for some (GET /users). Prints one JSON line for each number of connections: requests, answers by
status, lost (requests whose connection ended without an answer), requests_per_second, and the latencies p50_ms, p90_ms,
p99_ms and max_ms of those that were answered with 200.

--events keeps further connections busy with new events, each of a user of its own, whose line is the key `events`; it
ends with lost_acknowledged, the events that the service acknowledged and does not know afterwards. They stay in the
service's log, so give it one for the test. --fault does something to the service every so many seconds meanwhile:
`reload` sends SIGHUP to the process --owner, `kill` kills one of its workers (`ssd4rec serve --workers`) by SIGKILL.
"""
import asyncio
import itertools
import json
import os
import random
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from experiments.bench.http_load import load, workers_of
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.show.output import write_stdout

_URL = flags.DEFINE_string('url', 'http://127.0.0.1:8080', 'Where the service listens.')
_USERS = flags.DEFINE_string('users', None, 'File of user ids, one a line.')
_CONNECTIONS = flags.DEFINE_list('connections', ['1', '16', '64', '256'], 'Numbers of open connections, in order.')
_SECONDS = flags.DEFINE_float('seconds', 10.0, 'How long each.')
_K = flags.DEFINE_integer('top', 10, 'Items in each answer.')
_EVENTS = flags.DEFINE_integer('events', 0, 'Further connections, which send new events.', lower_bound=0)
_FAULT = flags.DEFINE_enum('fault', None, ['reload', 'kill'], 'What is done to the service meanwhile.')
_EVERY = flags.DEFINE_float('every', 5.0, 'Seconds between two faults.', lower_bound=0.1)
_OWNER = flags.DEFINE_integer('owner', None, 'Process id of `ssd4rec serve`, for --fault.', lower_bound=1)

_KNOWN_AT_ONCE = 50


def main() -> int:
    if _FAULT.value and _OWNER.value is None:
        raise ConfigError('--fault needs --owner, the process id of `ssd4rec serve`')
    users = Path(_USERS.value).read_text().split() if _USERS.value else _asked('/users?limit=200')['users']
    bodies = itertools.cycle([json.dumps({'users': [user], 'k': _K.value}).encode() for user in users])
    for connections in map(int, _CONNECTIONS.value):
        write_stdout(json.dumps(asyncio.run(_measured(bodies, connections))) + '\n')
    return 0


async def _measured(bodies: Iterator[bytes], connections: int) -> dict[str, Any]:
    """The figures of one number of connections."""
    url = urllib.parse.urlsplit(_URL.value)

    async def busy(path: str, bodies: Iterator[bytes], connections: int, answered: list[bytes]) -> dict[str, Any]:
        return await load(
            url.hostname or '127.0.0.1', url.port or 80, path, bodies, connections=connections, seconds=_SECONDS.value,
            reopen=_FAULT.value == 'kill', answered=answered,
        )

    acknowledged: list[bytes] = []
    writing = asyncio.create_task(busy('/events', _new_events(), _EVENTS.value, acknowledged))
    faults = asyncio.create_task(_faults(_OWNER.value or 0, time.monotonic() + _SECONDS.value))
    said = await busy('/recommend', bodies, connections, [])
    if _EVENTS.value:
        said['events'] = await writing
        said['events']['lost_acknowledged'] = len(acknowledged) - _known(acknowledged)
    if _FAULT.value:
        said['fault'] = {'kind': _FAULT.value, 'times': await faults}
    return said


async def _faults(owner: int, until: float) -> int:
    """Do what --fault says until the load is about to end; how often that was."""
    times = 0
    while _FAULT.value and time.monotonic() + _EVERY.value < until:
        await asyncio.sleep(_EVERY.value)
        if _FAULT.value == 'reload':
            os.kill(owner, signal.SIGHUP)
        else:
            os.kill(random.choice(workers_of(owner)), signal.SIGKILL)
        times += 1
    return times


def _new_events() -> Iterator[bytes]:
    items = [entry['item'] for entry in _asked('/items?limit=200')['items']] if _EVENTS.value else []
    run_ = f'load test {time.time_ns()}'
    for n in itertools.count():
        yield json.dumps({'events': [{'user': f'{run_} {n}', 'item': items[n % len(items)]}]}).encode()


def _known(acknowledged: list[bytes]) -> int:
    """How many users of events the service knows."""
    users = [json.loads(body)['events'][0]['user'] for body in acknowledged]
    return sum(
        len(_asked('/recommend', {'users': users[at:at + _KNOWN_AT_ONCE], 'k': 1, 'skip_unknown': True})['answers'])
        for at in range(0, len(users), _KNOWN_AT_ONCE)
    )


def _asked(path: str, body: dict | None = None) -> dict[str, Any]:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(_URL.value + path, content, {'content-type': 'application/json'})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == '__main__':
    run(main)
