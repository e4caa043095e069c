"""Imports run one way: experiments -> ssd4rec_jax -> pallas_kernels -> jax."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [p.relative_to(ROOT).as_posix() for top in ('experiments', 'ssd4rec_jax', 'pallas_kernels')
         for p in sorted((ROOT / top).rglob('*.py'))]

# Folder: what no file below it imports.
FORBIDDEN = {
    # The plain form is an oracle and a yardstick: nothing that it checks may be made of it.
    'ssd4rec_jax/': ('experiments', 'absl.flags', 'absl.app', 'tests', 'ssd4rec_jax.model.plain'),
    'ssd4rec_jax/data/': ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'pallas_kernels'),
    'pallas_kernels/': (
        'experiments', 'ssd4rec_jax', 'flax', 'grain', 'optax', 'orbax', 'absl.flags', 'tests',
    ),
    'experiments/': ('tests',),
}


# A command that nobody imports: it compiles the kernels and the train step that uses them.
ALLOWED = {'pallas_kernels/compile_tpu.py': ('ssd4rec_jax',)}


def imports(source):
    """Every module named in an import anywhere in the code; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative import'
            found |= {node.module, *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


def forbidden(path):
    return [
        name for folder, names in FORBIDDEN.items() if path.startswith(folder) for name in names
        if name not in ALLOWED.get(path, ())
    ]


def offences(path, source):
    return sorted(
        module for module in imports(source) for name in forbidden(path)
        if module == name or module.startswith(f'{name}.')
    )


def test_there_are_files_of_every_package():
    tops = {path.split('/')[0] for path in FILES}
    assert tops == {'experiments', 'ssd4rec_jax', 'pallas_kernels'}
    assert any(path.startswith('ssd4rec_jax/data/') for path in FILES)


@pytest.mark.parametrize('path', FILES)
def test_imports_run_one_way(path):
    assert offences(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize('path, source, expected', [
    ('ssd4rec_jax/data/new.py', 'def f():\n    import jax.numpy as jnp', ['jax.numpy']),
    ('ssd4rec_jax/data/new.py', 'from flax import nnx', ['flax', 'flax.nnx']),
    ('ssd4rec_jax/data/pipeline.py', 'import grain', []),
    ('ssd4rec_jax/new.py', 'from absl import flags, logging', ['absl.flags']),
    ('ssd4rec_jax/new.py', 'from absl import logging', []),
    ('ssd4rec_jax/new.py', 'from experiments.config import default_config',
     ['experiments.config', 'experiments.config.default_config']),
    ('ssd4rec_jax/model/new.py', 'from ssd4rec_jax.model import plain', ['ssd4rec_jax.model.plain']),
    ('experiments/bench/new.py', 'from ssd4rec_jax.model.plain import plain_readout', []),
    ('ssd4rec_jax/new.py', 'import jax, flax, pallas_kernels.ssd.api', []),
    ('pallas_kernels/ssd/new.py', 'import ssd4rec_jax.errors', ['ssd4rec_jax.errors']),
    ('pallas_kernels/ssd/new.py', 'import jax, jaxlib, numpy', []),
    ('experiments/new.py', 'import ssd4rec_jax, pallas_kernels, jax, absl.flags', []),
])
def test_the_test_itself(path, source, expected):
    assert offences(path, source) == expected
