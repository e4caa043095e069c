"""The training command end to end: what it writes, and that a killed run ends bitwise like an uninterrupted one."""
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import on_one_device

pytestmark = pytest.mark.slow  # Whole runs in processes of their own take minutes.

TINY = [
    '--dataset=interactions', '--data_dir=log.inter', '--preset=published',
    '--set=model.hidden_size=16', '--set=model.d_state=8', '--set=model.headdim=8', '--set=model.num_layers=1',
    '--set=train.max_epochs=2', '--set=train.log_every=5', '--set=train.targets_per_step=32',
    '--set=train.checkpoint_seconds=0.05',
]
SPEED = ('targets/s', 'tokens/s', 'train_seconds', 'evaluation_seconds')


def run(
    root: Path, workdir: str, *more: str, program: str = 'experiments.train', **environment: str
) -> subprocess.CompletedProcess:
    """The command on one simulated device, with the data and the runs in `root`."""
    command = [sys.executable, '-m', program, f'--workdir={workdir}', *TINY, *more]
    return subprocess.run(command, cwd=root, env=on_one_device(**environment), text=True, capture_output=True)


def stopped_in_mid_epoch(root: Path, workdir: str, number: int) -> subprocess.CompletedProcess:
    """A run that sends itself a signal in the midst of its first epoch, after some checkpoints."""
    (root / 'examples').mkdir(exist_ok=True)
    told = {'RECORD_IN': str(root / 'examples'), 'STOP_AFTER': '9', 'STOP_BY': str(int(number)), 'SAVE_EACH': 'yes'}
    return run(root, workdir, program='tests.recorded_train', **told)


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def without_speed(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with a log of 300 users, who go through 40 items in order and skip some."""
    path, rng = tmp_path_factory.mktemp('root'), np.random.default_rng(0)
    lines = ['user_id:token\titem_id:token\ttimestamp:float']
    for user in range(300):
        items = (rng.integers(40) + np.cumsum(rng.integers(1, 3, rng.integers(10, 20)))) % 40
        lines += [f'u{user}\ti{item}\t{time}' for time, item in enumerate(items)]
    (path / 'log.inter').write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='module')
def whole(root):
    """(the folder, the finished process) of an uninterrupted run."""
    done = run(root, 'whole')
    assert done.returncode == 0, done.stderr
    return root / 'whole', done


def test_a_run_leaves_what_it_says(whole):
    workdir, done = whole
    result = json.loads((workdir / 'result.json').read_text())
    names = {f'{m}@{k}' for m in ('HR', 'NDCG', 'MRR') for k in (10, 20)}
    for part in (result['valid'], result['test'], result['popularity']['valid'], result['popularity']['test']):
        assert set(part) == names and all(0 <= v <= 1 for v in part.values())
    assert result['dataset'] == 'interactions' and result['epochs'] == 2 and result['best_epoch'] in (1, 2)
    assert len(result['parameters_sha256']) == 64 and result['seed'] == 2024 and result['backend'] == 'cpu'
    for key in ('train_seconds', 'targets/s', 'tokens/s', 'parameters', 'packing_fill', 'peak_memory_bytes', 'devices'):
        assert result[key] > 0
    assert set(result['versions']) == {'python', 'jax', 'flax', 'numpy'}
    rows = records(workdir)
    train = [r for r in rows if r['kind'] == 'train']
    for row in train:
        assert {'step', 'epoch', 'loss', 'targets/s', 'tokens/s', 'packing_fill', 'learning_rate'} <= set(row)
    steps = [r['step'] for r in train]
    assert steps == sorted(set(steps)) and {r['epoch'] for r in train} == {1, 2}
    assert [r['epoch'] for r in rows if r['kind'] == 'valid'] == [1, 2]
    valid = [r['NDCG@10'] for r in rows if r['kind'] == 'valid']
    assert result['valid']['NDCG@10'] == valid[result['best_epoch'] - 1]
    assert train[-1]['loss'] < train[0]['loss']
    for text in ('XLA compiles', 'popularity', 'SSD4Rec', 'data: ', 'workdir: '):
        assert text in done.stdout


def test_a_finished_run_prints_its_table_again_and_changes_nothing(root, whole):
    workdir, _ = whole
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file() and p.name != '.lock'}
    done = run(root, 'whole')
    assert done.returncode == 0 and 'SSD4Rec' in done.stdout and 'compiles' not in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file() and p.name != '.lock'}


def test_kill_9_in_mid_epoch_then_the_same_command_ends_bitwise_the_same(root, whole):
    """And the newest checkpoint is damaged, so that the one before it is gone on from."""
    name = 'killed'
    killed = stopped_in_mid_epoch(root, name, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps = [int(p.name) for p in (root / name / 'checkpoints').glob('*') if p.name.isdigit()]
    newest = root / name / 'checkpoints' / str(max(steps))
    victim = max(newest.rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    done = run(root, name)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r'going on from step .*, (\d+) steps of it done', done.stdout)[1]) > 0
    assert 'is damaged' in done.stderr
    ours, theirs = (json.loads((root / w / 'result.json').read_text()) for w in (name, 'whole'))
    assert ours['parameters_sha256'] == theirs['parameters_sha256']
    assert ours['test'] == theirs['test'] and ours['valid'] == theirs['valid']
    assert without_speed(records(root / name)) == without_speed(records(whole[0]))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_exit_and_go_on(root, whole, number):
    name = f'stopped-{number}'
    stopped = stopped_in_mid_epoch(root, name, number)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert signal.Signals(number).name in stopped.stderr and 'Traceback' not in stopped.stderr
    assert 'stopped and saved' in stopped.stdout
    assert not (root / name / 'result.json').exists()
    done = run(root, name)
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads((root / w / 'result.json').read_text()) for w in (name, 'whole'))
    assert ours['parameters_sha256'] == theirs['parameters_sha256']
    assert without_speed(records(root / name)) == without_speed(records(root / 'whole'))


def test_a_workdir_of_another_config_is_refused_by_name_unless_told_otherwise(root, whole):
    workdir, _ = whole
    before = (workdir / 'config.json').read_bytes(), (workdir / 'metrics.jsonl').read_bytes()
    refused = run(root, 'whole', '--set=model.beta=0.5')
    assert refused.returncode == 1 and 'Traceback' not in refused.stderr
    assert 'model.beta: 0.1 there, 0.5 here' in refused.stderr
    assert before == ((workdir / 'config.json').read_bytes(), (workdir / 'metrics.jsonl').read_bytes())


def test_a_loss_that_is_not_finite_stops_with_step_rate_and_last_good_checkpoint(root):
    done = run(root, 'diverged', '--set=train.learning_rate=1e30')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    for text in ('not finite at step', 'learning rate 1e+30', 'checkpoint', 'train.learning_rate'):
        assert text in done.stderr
    assert not (root / 'diverged' / 'result.json').exists()


@pytest.mark.parametrize('flags,named', [
    (['--datasett=x'], "did you mean 'dataset'?"),
    (['--set=model.num_layer=1'], "did you mean 'model.num_layers'"),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        (['--set=model.num_layers=two'], "model.num_layers takes a whole number, not 'two'"),
        (['--set=model.headdim=7'], 'model.headdim=7'),
        (['--dataset=kuairandd'], "did you mean 'kuairand'"),
        (['--dataset=ml-100k', '--data_dir=nowhere'], 'nowhere'),
        (['synthetic'], "unexpected argument 'synthetic'"),
    )),
])
def test_bad_flags_are_refused_in_a_sentence(root, flags, named):
    done = run(root, 'refused', *flags)
    assert done.returncode != 0
    assert named in done.stderr and 'Traceback' not in done.stderr
    assert not (root / 'refused' / 'result.json').exists()
