"""Load test of a running service: latencies and requests per second by the number of connections.

    python -m experiments.load_test --url=http://127.0.0.1:8080 --users=FILE.txt --connections=1,16,64,256 --seconds=10

Each connection sends its next request when it has the answer to the one before. The client is one process that speaks
HTTP over raw sockets, and shares the cores with the service. --users names a file of user ids, one a line; without it
the service is asked for some (GET /users). Prints one JSON line for each number of connections: requests, answers by
status, requests_per_second, and the latencies p50_ms, p90_ms, p99_ms and max_ms of those that were answered with 200.
"""
import asyncio
import itertools
import json
import urllib.parse
import urllib.request
from pathlib import Path

from absl import flags

from experiments.bench.http_load import load
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.show.output import write_stdout

_URL = flags.DEFINE_string('url', 'http://127.0.0.1:8080', 'Where the service listens.')
_USERS = flags.DEFINE_string('users', None, 'File of user ids, one a line.')
_CONNECTIONS = flags.DEFINE_list('connections', ['1', '16', '64', '256'], 'Numbers of open connections, in order.')
_SECONDS = flags.DEFINE_float('seconds', 10.0, 'How long each.')
_K = flags.DEFINE_integer('top', 10, 'Items in each answer.')


def main() -> int:
    url = urllib.parse.urlsplit(_URL.value)
    if _USERS.value:
        users = Path(_USERS.value).read_text().split()
    else:
        with urllib.request.urlopen(f'{_URL.value}/users?limit=200') as answer:
            users = json.load(answer)['users']
    bodies = [json.dumps({'users': [user], 'k': _K.value}).encode() for user in users]
    for connections in map(int, _CONNECTIONS.value):
        said = asyncio.run(load(
            url.hostname or '127.0.0.1', url.port or 80, '/recommend', itertools.cycle(bodies), connections=connections,
            seconds=_SECONDS.value,
        ))
        write_stdout(json.dumps(said) + '\n')
    return 0


if __name__ == '__main__':
    run(main)
