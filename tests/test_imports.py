"""Imports run one way: experiments -> ssd4rec_jax -> pallas_kernels -> jax."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [p.relative_to(ROOT).as_posix() for top in ('experiments', 'ssd4rec_jax', 'pallas_kernels')
         for p in sorted((ROOT / top).rglob('*.py'))]

# For each folder, the modules that no file in it may import.
FORBIDDEN = {
    # The plain form is an oracle, so nothing that it checks may be built on it.
    'ssd4rec_jax/': ('experiments', 'tests', 'ssd4rec_jax.model.plain'),
    'ssd4rec_jax/data/': ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'pallas_kernels'),
    'ssd4rec_jax/config/': ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'pallas_kernels'),
    'pallas_kernels/': ('experiments', 'ssd4rec_jax', 'flax', 'grain', 'optax', 'orbax', 'tests'),
    'experiments/': ('tests',),
}
FLAGS = 'absl.flags', 'absl.app'  # only for commands
COMMANDS = 'ssd4rec_jax/commands/', 'experiments/'
# The rooms of ssd4rec_jax from the ground up. A room imports only rooms before it, so there are no circles.
ROOMS = (
    'errors', 'files', 'reporter', 'config', 'parallel', 'data', 'model', 'peers', 'rank', 'run', 'train', 'presets',
    'tune', 'study', 'show', 'arguments', 'answers', 'added_items', 'live', 'export', 'recommender', 'report', 'serve',
    'commands',
)
# The rooms of experiments, in the same way; its front doors and commands lie above all of them.
EXPERIMENTS = 'logs', 'published', 'compiled', 'pod', 'bench'


def imports(source):
    """Every module that an import anywhere in the code names; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative import'
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


def forbidden(path):
    names = [name for folder, names in FORBIDDEN.items() if path.startswith(folder) for name in names]
    if not path.startswith(COMMANDS):
        names += FLAGS
    for package, rooms in (('ssd4rec_jax', ROOMS), ('experiments', EXPERIMENTS)):
        room = Path(path).with_suffix('').parts[1]
        if path.startswith(f'{package}/') and room in rooms:
            names += [f'{package}.{above}' for above in rooms[rooms.index(room) + 1:]]
    return names


def offences(path, source):
    return sorted(
        module for module in imports(source) for name in forbidden(path)
        if module == name or module.startswith(f'{name}.')
    )


def test_there_are_files_of_every_package():
    tops = {path.split('/')[0] for path in FILES}
    assert tops == {'experiments', 'ssd4rec_jax', 'pallas_kernels'}
    rooms = {Path(path).with_suffix('').parts[1] for path in FILES if path.startswith('ssd4rec_jax/')}
    assert rooms == {'__init__', *ROOMS}


@pytest.mark.parametrize('path', FILES)
def test_imports_run_one_way(path):
    assert offences(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize('path, source, expected', [
    ('ssd4rec_jax/data/new.py', 'def f():\n    import jax.numpy as jnp', ['jax.numpy']),
    ('ssd4rec_jax/data/new.py', 'from flax import nnx', ['flax', 'flax.nnx']),
    ('ssd4rec_jax/data/pipeline.py', 'import grain', []),
    ('ssd4rec_jax/train/new.py', 'from absl import flags, logging', ['absl.flags']),
    ('ssd4rec_jax/commands/new.py', 'from absl import flags, logging', []),
    ('ssd4rec_jax/train/new.py', 'import experiments.logs', ['experiments.logs']),
    ('ssd4rec_jax/run/new.py', 'import ssd4rec_jax.train.state', ['ssd4rec_jax.train.state']),
    ('ssd4rec_jax/train/new.py', 'import ssd4rec_jax.run.folder', []),
    ('ssd4rec_jax/files.py', 'import ssd4rec_jax.config.run', ['ssd4rec_jax.config.run']),
    ('ssd4rec_jax/model/new.py', 'from ssd4rec_jax.model import plain', ['ssd4rec_jax.model.plain']),
    ('experiments/bench/new.py', 'from ssd4rec_jax.model.plain import plain_readout', []),
    ('experiments/compiled/new.py', 'import experiments.bench.long', ['experiments.bench.long']),
    ('ssd4rec_jax/train/new.py', 'import jax, flax, pallas_kernels.ssd.api', []),
    ('pallas_kernels/ssd/new.py', 'import ssd4rec_jax.errors', ['ssd4rec_jax.errors']),
    ('pallas_kernels/ssd/new.py', 'import jax, jaxlib, numpy', []),
    ('experiments/new.py', 'import ssd4rec_jax, pallas_kernels, jax, absl.flags', []),
])
def test_the_test_itself(path, source, expected):
    assert offences(path, source) == expected
