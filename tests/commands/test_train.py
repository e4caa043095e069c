"""How the training command treats a workdir that is not empty, and the process around a run."""
import glob
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ssd4rec_jax.commands import backend
from ssd4rec_jax.data.dataset import open_dataset
from ssd4rec_jax.errors import TrainingError, UserError
from ssd4rec_jax.parallel.out_of_memory import explain_out_of_memory
from ssd4rec_jax.rank.baselines import transition_ranks
from ssd4rec_jax.rank.metrics import ranking_metrics
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import load_run
from ssd4rec_jax.train.stop_signals import StopSignals
from tests.processes import on_one_device

pytestmark = pytest.mark.slow  # Whole trainings take minutes.

TINY = [
    '--dataset=interactions', '--set=model.hidden_size=8', '--set=model.d_state=4', '--set=model.headdim=4',
    '--set=model.num_layers=1', '--set=train.log_every=1',
]


def train(root: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'experiments.train', *flags], cwd=root, env=on_one_device(**environment),
        capture_output=True, text=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def refused(done: subprocess.CompletedProcess, *texts: str) -> None:
    assert done.returncode == 1 and done.stderr.startswith('error: ') and 'Traceback' not in done.stderr
    for text in texts:
        assert text in done.stderr


def write_log(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [f'{u},{i},{t}' for u in range(40) for t, i in enumerate(rng.integers(0, 12, 9))]
    path.write_text('\n'.join(['user_id,item_id,timestamp', *rows]) + '\n')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with two logs and `run`, a run of one epoch on the first of them."""
    root = tmp_path_factory.mktemp('root')
    for seed in (0, 1):
        write_log(root / f'log{seed}.csv', seed)
    done = train(root, *TINY, '--data_dir=log0.csv', '--workdir=run', '--set=train.max_epochs=1')
    assert done.returncode == 0, done.stderr
    return root


def test_another_config_is_refused_and_changes_nothing(root):
    before = contents(root / 'run')
    done = train(
        root, *TINY, '--data_dir=log0.csv', '--workdir=run', '--set=train.max_epochs=2', '--set=model.beta=0.7'
    )
    refused(done, 'model.beta: 0.1 there, 0.7 here', 'train.max_epochs: 1 there, 2 here', '--restart', '--adopt_config')
    assert contents(root / 'run') == before


def test_a_finished_run_on_another_log_is_refused(root):
    before = contents(root / 'run')
    done = train(root, *TINY, '--data_dir=log1.csv', '--workdir=run', '--set=train.max_epochs=1')
    refused(done, 'finished run on another log')
    assert contents(root / 'run') == before


def test_a_finished_run_prints_its_table_though_its_log_is_gone(root):
    (root / 'log0.csv').rename(root / 'moved.csv')
    done = train(root, *TINY, '--data_dir=log0.csv', '--workdir=run', '--set=train.max_epochs=1')
    (root / 'moved.csv').rename(root / 'log0.csv')
    assert done.returncode == 0 and 'is finished' in done.stdout and 'popularity' in done.stdout


def test_two_processes_never_train_in_one_workdir(root):
    held = RunFolder(root / 'run')
    held.lock()
    before = contents(root / 'run')
    refused(train(root, *TINY, '--data_dir=log0.csv', '--workdir=run'), 'another process is training in')
    refused(train(root, *TINY, '--data_dir=log0.csv', '--workdir=run', '--restart'), 'another process is training in')
    assert contents(root / 'run') == before
    with pytest.raises(UserError, match='another process'):
        RunFolder(root / 'run').lock()


def test_adopt_config_goes_on_and_restart_sets_aside(root):
    one_epoch = contents(root / 'run')
    go_on = [*TINY, '--data_dir=log0.csv', '--workdir=run', '--set=train.max_epochs=2']
    done = train(root, *go_on, '--adopt_config')
    assert done.returncode == 0, done.stderr
    assert 'going on from step' in done.stdout and '(epoch 2, 0 steps of it done)' in done.stdout
    two_epochs = contents(root / 'run')
    assert json.loads(two_epochs['result.json'])['epochs'] == 2
    assert json.loads(two_epochs['config.json'])['train']['max_epochs'] == 2
    kinds = [(r['kind'], r['step']) for r in map(json.loads, two_epochs['metrics.jsonl'].splitlines())]
    steps = [step for kind, step in kinds if kind == 'train']
    assert steps == list(range(1, len(steps) + 1))
    assert len(kinds) == len(set(kinds)) and [kind for kind, _ in kinds].count('valid') == 2

    done = train(root, *TINY, '--data_dir=log0.csv', '--workdir=run', '--set=train.max_epochs=1', '--restart')
    assert done.returncode == 0, done.stderr
    assert contents(root / 'run.1') == two_epochs
    again = json.loads(contents(root / 'run')['result.json'])
    assert again['parameters_sha256'] == json.loads(one_epoch['result.json'])['parameters_sha256']


def test_a_workdir_alone_goes_on_and_a_finished_run_trains_some_epochs_more(root):
    done = train(root, '--workdir=run')
    assert done.returncode == 0
    assert done.stdout.startswith(f'workdir: {root / "run"}\n') and 'is finished' in done.stdout
    done = train(root, '--workdir=run', '--set=train.max_epochs=+1')
    assert done.returncode == 0, done.stderr
    assert json.loads((root / 'run/result.json').read_text())['epochs'] == 2
    assert json.loads((root / 'run/config.json').read_text())['train']['max_epochs'] == 2


def test_a_model_without_histories_answers_histories_alone_and_a_start_names_its_workdir_once(root):
    done = train(
        root, *TINY, '--data_dir=log0.csv', '--workdir=nameless', '--set=train.max_epochs=1', '--without_histories'
    )
    assert done.returncode == 0 and done.stdout.count('workdir: ') == 1, done.stderr
    files = {file.name for file in (root / 'nameless/model').iterdir()}
    assert 'weights.safetensors' in files and not {'histories.safetensors', 'users.parquet'} & files


def test_a_failed_start_leaves_no_folder_and_the_default_one_is_named_first(root):
    done = train(root, *TINY, '--data_dir=absent.csv')
    refused(done, 'absent.csv')
    assert done.stdout.startswith(f'workdir: {root / "runs/interactions"} (by default')
    assert not (root / 'runs').exists()


def test_checkpoints_without_a_config_are_refused(root):
    (root / 'odd/checkpoints').mkdir(parents=True)
    refused(train(root, *TINY, '--data_dir=log0.csv', '--workdir=odd'), 'holds checkpoints but no config.json')
    assert contents(root / 'odd') == {}


def test_three_files_are_trained_validated_and_tested_on_as_they_say(root):
    rows = (root / 'log0.csv').read_text().splitlines()
    tested = [*rows[9::9][:-1], '39,999,8']  # an item that training never saw
    held = {'train': [row for k, row in enumerate(rows[1:]) if k % 9 < 7], 'valid': rows[8::9], 'test': tested}
    (root / 'parts').mkdir()
    for part, lines in held.items():
        (root / f'parts/{part}.csv').write_text('\n'.join([rows[0], *lines]) + '\n')
    refused(train(root, *TINY, '--train_file=parts/train.csv'), 'are read with --set=data.split=files')
    files = '--set=data.split=files', '--data_dir=parts', '--workdir=by_files', '--set=train.max_epochs=1'
    done = train(root, *TINY, *files)
    assert done.returncode == 0, done.stderr
    protocol = (
        'files: trained, validated and tested on the rows of one file each; items that training never saw count as not '
        'found'
    )
    assert f'protocol: {protocol} (2.5% of the test targets)' in done.stderr + done.stdout
    assert json.loads((root / 'by_files/result.json').read_text())['protocol'] == protocol
    saved = load_run(root / 'by_files')  # from the folder that travels
    assert saved.dataset.held_out.protocol == protocol
    assert np.bincount(saved.dataset.parts).tolist() == [280, 0, 40, 40]


def test_a_workdir_that_is_a_file_is_refused(root):
    refused(train(root, *TINY, '--data_dir=log0.csv', '--workdir=log1.csv'), 'log1.csv cannot be written')


@pytest.mark.slow
def test_the_default_run_beats_popularity_threefold_and_the_transition_table(tmp_path):
    done = train(tmp_path, XLA_FLAGS='')  # It is the running that takes long here, and not the compiling.
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'runs/synthetic/result.json').read_text())
    prepared = Path(json.loads((tmp_path / 'runs/synthetic/config.json').read_text())['prepared'])
    table = ranking_metrics(transition_ranks(open_dataset(prepared), 'test'))
    assert result['test']['NDCG@10'] >= 3 * result['popularity']['test']['NDCG@10'] > 0
    assert result['test']['NDCG@10'] > table['NDCG@10']


@pytest.mark.parametrize('error', [
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nsecond line'),
    MemoryError('std::bad_alloc'),
])
def test_out_of_memory_names_the_key_to_lower(error):
    with (
        pytest.raises(TrainingError, match='out of memory in the train step: lower train.targets_per_step') as raised,
        explain_out_of_memory('the train step'),
    ):
        raise error
    assert str(error).splitlines()[0] in str(raised.value) and 'second line' not in str(raised.value)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match='INVALID_ARGUMENT'), explain_out_of_memory('the train step'):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: no')


@pytest.mark.parametrize('device, extra', [('/dev/nvidia0', 'gpu'), ('/dev/accel0', 'tpu')])
def test_cpu_jax_beside_an_accelerator_is_warned_of(monkeypatch, device, extra):
    monkeypatch.setattr(glob, 'glob', lambda pattern: [device] if pattern.startswith(device[:-1]) else [])
    assert backend.backend_warning() is None  # JAX_PLATFORMS=cpu asks for the CPU
    monkeypatch.delenv('JAX_PLATFORMS')
    assert f'pip install "ssd4rec-jax[{extra}]"' in backend.backend_warning()
    monkeypatch.setattr(glob, 'glob', lambda pattern: [])
    assert backend.backend_warning() is None


@pytest.fixture
def restored_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(restored_signals, capfd, number, code):
    stop = StopSignals()
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.requested() and stop.exit_code == code
    assert f'{number.name}: stopping' in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
