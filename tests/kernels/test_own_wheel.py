"""The kernels as a wheel of their own: built, installed beside JAX alone, and run."""
import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest

from pallas_kernels.installed import WHEELS, refuse_two_versions

ROOT = Path(__file__).parents[2]
PROJECTS = [tomllib.loads((folder / 'pyproject.toml').read_text())['project']
            for folder in (ROOT, ROOT / 'pallas_kernels')]
PROGRAM = """
import importlib.util
import jax, jax.numpy as jnp, pallas_kernels

def loss(x, state):
    B = jnp.ones((1, 8, 1, 16))
    y, state = pallas_kernels.ssd_scan(x, jnp.ones((1, 8, 2)), -jnp.ones(2), B, B, initial_states=state,
                                       return_final_states=True)
    return y.sum() + state.sum()

grads = jax.grad(loss, argnums=(0, 1))(jnp.ones((1, 8, 2, 4)), jnp.ones((1, 2, 4, 16)))
print(pallas_kernels.__file__, importlib.util.find_spec('flax'), *(bool(jnp.isfinite(g).all()) for g in grads))
"""


def test_both_wheels_have_one_version_and_ask_for_the_same_jax():
    whole, kernels = PROJECTS
    assert [project['name'] for project in PROJECTS] == list(WHEELS)
    assert whole['version'] == kernels['version'] and whole['requires-python'] == kernels['requires-python']
    assert kernels['dependencies'] == [need for need in whole['dependencies'] if need.startswith('jax')]


@pytest.mark.parametrize('installed', [
    {'ssd4rec-jax': '0.2.0'}, {'ssd4rec-pallas-kernels': '0.3.0'}, dict.fromkeys(WHEELS, '0.2.0'), {},
])
def test_one_wheel_or_two_of_one_version_are_harmless(installed, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda name: version_in(installed, name))
    refuse_two_versions()


def test_two_wheels_of_different_versions_are_refused(monkeypatch):
    installed = {'ssd4rec-jax': '0.2.0', 'ssd4rec-pallas-kernels': '0.3.0'}
    monkeypatch.setattr(metadata, 'version', lambda name: version_in(installed, name))
    with pytest.raises(ImportError, match='ssd4rec-jax 0.2.0 and ssd4rec-pallas-kernels 0.3.0 are installed'):
        refuse_two_versions()


def version_in(installed, name):
    if name not in installed:
        raise metadata.PackageNotFoundError(name)
    return installed[name]


def run(*command, cwd):
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'XLA_FLAGS')}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needed_by(name):
    """The distributions that this one needs, itself included, extras left out."""
    found, todo = {}, [name]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = metadata.distribution(name)
            todo += [re.match(r'[\w.-]+', need)[0] for need in found[name].requires or () if 'extra ==' not in need]
    return found.values()


def link(distribution, packages):
    """Put the files of an installed distribution into another folder of packages, by links."""
    for top in {Path(file).parts[0] for file in distribution.files if not str(file).startswith(('..', '__pycache__'))}:
        if not (packages / top).exists():
            (packages / top).symlink_to(distribution.locate_file(top))


@pytest.mark.slow
def test_the_wheel_needs_jax_alone(tmp_path):
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp_path, ROOT / 'pallas_kernels', cwd=tmp_path)
    (wheel,) = tmp_path.glob('ssd4rec_pallas_kernels-*.whl')
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv/bin/python'
    packages = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip())
    for distribution in needed_by('jax'):
        link(distribution, packages)
    # Without an index, pip refuses the wheel unless what it needs is there.
    run(python, '-m', 'pip', 'install', '-q', '--no-index', wheel, cwd=tmp_path)
    file, flax, *finite = run(python, '-c', PROGRAM, cwd=tmp_path).split()
    assert Path(file).is_relative_to(packages) and flax == 'None' and finite == ['True', 'True']
    assert 'bench' in run(python, '-m', 'pallas_kernels.bench_ssd', '--help', cwd=tmp_path)
