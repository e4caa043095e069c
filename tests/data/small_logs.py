"""Literal logs, and how they are read."""
from pathlib import Path

from ssd4rec_jax.data.log import REFUSE, BadRowPolicy
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.data.tables.formats import TableOptions

HEADER = 'user_id,item_id,timestamp\n'
ROWS = 'u1,i1,1600000000\nu2,i2,1600000060\nu1,i3,1600000120\n'
USERS, ITEMS, TIMES = ['u1', 'u2', 'u1'], ['i1', 'i2', 'i3'], [1600000000, 1600000060, 1600000120]
SKIP = BadRowPolicy(skip=True, max_share=0.9)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, policy: BadRowPolicy = REFUSE, **options):
    return find_source('interactions', path, options=TableOptions(**options), policy=policy).read()


def columns(log) -> tuple[list, list, list]:
    return log.users.tolist(), log.items.tolist(), log.times.tolist()
