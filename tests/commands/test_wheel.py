"""The wheel, installed outside the clone, does all of it: train, recommend, export, serve, and the Python API."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    '--dataset=interactions', '--data_dir=log.csv', '--workdir=run', '--set=model.hidden_size=8',
    '--set=model.d_state=4', '--set=model.headdim=4', '--set=model.num_layers=1', '--set=train.max_epochs=1',
]
API = '''
import ssd4rec_jax
from ssd4rec_jax import Recommender
found = Recommender.load('run').recommend(users=['u1'], k=2)
print(ssd4rec_jax.__file__, ssd4rec_jax.__version__, *found['user'])
'''


PACKAGES = 'ssd4rec_jax', 'pallas_kernels'
OTHERS = {'pallas_kernels/pyproject.toml'}  # of the project whose wheel holds the kernels alone


def tree() -> set[str]:
    """The files of the packages, as a commit would hold them."""
    command = 'git', 'ls-files', '--cached', '--others', '--exclude-standard', '--', *PACKAGES
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('no clone: git does not list its files')
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()} - OTHERS


def test_every_file_that_is_not_python_is_named_as_package_data():
    """The checkout has all files; a wheel has only those that pyproject.toml names."""
    named = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['package-data']
    found = {path.relative_to(ROOT).as_posix() for package, patterns in named.items() for pattern in patterns
             for path in (ROOT / package).glob(pattern)}
    assert found == {name for name in tree() if not name.endswith('.py')}


def users_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'XLA_FLAGS')}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=users_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(script: Path, home: Path) -> dict:
    """What `ssd4rec serve` answers to the history that the export was asked for."""
    command = [script, 'serve', '--model=run', '--port=0']
    with subprocess.Popen(
        command, cwd=home, env=users_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if ': ready' in line)
            asked = urllib.request.Request(
                f'{ready.partition(": ready")[0]}/recommend', b'{"histories": [["i1", "i4"]], "k": 3}',
                {'content-type': 'application/json'},
            )
            with urllib.request.urlopen(asked) as answer:
                return json.load(answer)
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_wheel_works_outside_the_clone(tmp_path):
    source, home = tmp_path / 'source', tmp_path / 'home'
    for name in ('ssd4rec_jax', 'pallas_kernels'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob('ssd4rec_jax-*.whl')
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(tuple(f'{p}/' for p in PACKAGES))} \
        == tree()
    shutil.rmtree(source)
    # The dependencies come from this environment, by a path; its own install of the project is not on it.
    venv.create(tmp_path / 'venv', with_pip=True)
    python, script = tmp_path / 'venv/bin/python', tmp_path / 'venv/bin/ssd4rec'
    packages = Path(run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path).strip())
    run(python, '-m', 'pip', 'install', '-q', '--no-deps', wheel, cwd=tmp_path)
    (packages / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')

    home.mkdir()
    rows = [f'u{u},i{(u * 3 + t) % 12},{t}' for u in range(40) for t in range(8)]
    (home / 'log.csv').write_text('\n'.join(['user_id,item_id,timestamp', *rows]) + '\n')
    assert 'SSD4Rec' in run(script, 'train', *TINY, cwd=home)
    assert 'model.num_layers' in run(script, 'settings', cwd=home)
    run(script, 'recommend', '--workdir=run', '--users=all', '--k=3', '--output=all.parquet', cwd=home)
    assert pl.read_parquet(home / 'all.parquet').group_by('user').len()['len'].to_list() == [3] * 40
    assert json.loads(run(script, 'evaluate', '--workdir=run', cwd=home))['split'] == 'test'
    run(script, 'export', '--workdir=run', '--output=out', cwd=home)
    first, *_ = run(script, 'recommend', '--workdir=run', '--history=i1,i4', cwd=home).splitlines()
    assert json.loads(run(python, 'out/load.py', '["i1", "i4"]', cwd=home))[0][0] == first.split('\t')[2]
    assert served(script, home)['answers'][0]['items'][0]['item'] == first.split('\t')[2]
    file, version, *users = run(python, '-c', API, cwd=home).split()
    assert file.startswith(str(packages)) and wheel.name.startswith(f'ssd4rec_jax-{version}') and users == ['u1', 'u1']
