"""python -m experiments.prepare as a user runs it."""
import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = 'user_id:token\titem_id:token\ttimestamp:float\n'
SIZES = (
    'users', 'items', 'interactions', 'median_length', 'max_length', 'train_targets', 'valid_targets', 'test_targets',
    'test_items_sha256', 'valid_items_sha256',
)
ROWS = [(user, item, 100 - 7 * item if user % 2 else item) for item in range(6) for user in (11, 2, 30, 4, 5)]


def prepare(*flags: str, cwd: Path | str = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, '-m', 'experiments.prepare', *flags], capture_output=True, text=True, cwd=cwd, env=environment
    )


@pytest.fixture
def log(tmp_path) -> Path:
    text = HEADER + ''.join(f'{user}\t{item}\t{time}\n' for user, item, time in ROWS)
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'ml-100k.inter.gz').write_bytes(gzip.compress(text.encode()))
    return tmp_path / 'raw'


def test_one_json_line(tmp_path, log):
    done = prepare('--dataset=ml-100k', f'--data_dir={log}', f'--output={tmp_path / "out"}')
    assert done.returncode == 0 and done.stdout.count('\n') == 1
    test, valid = (''.join(f'{u},{last if u % 2 == 0 else first}\n' for u in (2, 4, 5, 11, 30))
                   for last, first in ((5, 0), (4, 1)))
    printed = json.loads(done.stdout)
    assert {key: printed[key] for key in SIZES} == {
        'users': 5, 'items': 6, 'interactions': 30, 'median_length': 6.0, 'max_length': 6, 'train_targets': 15,
        'valid_targets': 5, 'test_targets': 5, 'test_items_sha256': hashlib.sha256(test.encode()).hexdigest(),
        'valid_items_sha256': hashlib.sha256(valid.encode()).hexdigest(),
    }
    again = prepare('--dataset=ml-100k', f'--data_dir={log}', f'--output={tmp_path / "out"}')
    assert again.stdout == done.stdout and again.stderr == ''


def test_settings_and_columns_from_flags(tmp_path, log):
    rows = ''.join(f'{time},{item},{user}\n' for user, item, time in ROWS)
    (tmp_path / 'mine.csv').write_text('when,what,who\n' + rows)
    done = prepare(
        '--dataset=interactions', f'--data_dir={tmp_path / "mine.csv"}', '--user_column=who', '--item_column=what',
        '--time_column=when', '--set', 'data.timestamp_precision=float32', cwd=tmp_path,
    )
    named = prepare('--dataset=ml-100k', f'--data_dir={log}', f'--output={tmp_path / "out"}')
    ours, theirs = json.loads(done.stdout), json.loads(named.stdout)
    assert {key: ours[key] for key in SIZES} == {key: theirs[key] for key in SIZES}
    assert ours['notes'] == [
        f'{tmp_path / "mine.csv"}: when holds small numbers, which are taken for positions in time'
    ] and done.stderr.splitlines() == ours['notes']
    assert len(list((tmp_path / 'data' / 'interactions').glob('prepared-*/dataset.json'))) == 1


def test_preparation_does_not_import_jax(tmp_path, log):
    code = (
        'import sys, ssd4rec_jax.commands.prepare\n'
        'from ssd4rec_jax.config.data import DataConfig\n'
        'from ssd4rec_jax.data.prepare import prepare\n'
        'from ssd4rec_jax.data.sources import find_source\n'
        'from ssd4rec_jax.presets import default_config\n'
        'default_config("ml-100k")\n'
        'prepare(find_source("ml-100k", sys.argv[1]), DataConfig(), sys.argv[2])\n'
        'print("jax" in sys.modules)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, log, tmp_path / 'out'], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == 'False\n'


@pytest.mark.parametrize('rows, message', [
    ('11\t3\tsoon\n', "ml-100k.inter:2: timestamp is 'soon', not a number"),
    ('11\t3\n', 'ml-100k.inter:2: 2 fields where 3 are expected'),
    ('11\t3\t5\n', 'none is left after the iterated user and item 5-core'),
    ('', 'ml-100k.inter: holds no rows'),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, rows, message):
    (tmp_path / 'ml-100k.inter').write_text(HEADER + rows)
    done = prepare('--dataset=ml-100k', f'--data_dir={tmp_path}', f'--output={tmp_path / "deep" / "out"}')
    assert done.returncode == 1 and done.stdout == ''
    assert message in done.stderr and done.stderr.count('\n') == 1 and 'Traceback' not in done.stderr
    assert os.listdir(tmp_path) == ['ml-100k.inter']


@pytest.mark.parametrize('flags, message', [
    (['--dataset=ml-100k', '--data_dri=x'], "there is no flag --data_dri; did you mean 'data_dir'?"),
    (['--dataset=ml-100'], "'ml-100k'"),
    (['--set=data.timestamp_precison=float32'], "'data.timestamp_precision'"),
    (['--set=data.timestamp_precision=float16'], "data.timestamp_precision='float16' must be one of exact, float32"),
    (['--set=data.min_interactions=0'], 'data.min_interactions=0 must be at least 1'),
    (['--set=data.min_item_interactions=-1'], 'data.min_item_interactions=-1 must be 0'),
    (['--dataset=ml-100k', '--max_bad_share=2'], '--max_bad_share=2.0 must lie between 0 and 1'),
    (['--dataset=ml-100k', '--data_dir=gone'], 'put ml-100k.zip there'),
])
def test_wrong_flags_are_refused(tmp_path, flags, message):
    done = prepare(*flags, cwd=tmp_path)
    assert done.returncode != 0 and done.stdout == '' and message in done.stderr and 'Traceback' not in done.stderr
    assert os.listdir(tmp_path) == []
