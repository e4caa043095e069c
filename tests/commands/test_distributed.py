"""Several real processes over loopback: one process's numbers, and no hang when one of them fails."""
import json
import signal
import subprocess
import textwrap

import numpy as np
import pytest

from tests.processes import finished, kept_port, start

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

SETTINGS = (
    '--set=model.hidden_size=16', '--set=model.num_layers=1', '--set=model.d_state=8', '--set=model.headdim=8',
    '--set=data.rows_per_step=4', '--set=data.tokens_per_row=64', '--set=train.targets_per_step=24',
    '--set=train.log_every=1', '--set=train.max_epochs=2',
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with a log of 50 users and 34 items; no count of devices here divides the 35 rows of their table."""
    root = tmp_path_factory.mktemp('processes')
    rng = np.random.default_rng(0)
    lines = ['user,item,time']
    for user in range(50):
        lines += [f'{user},{rng.integers(0, 34)},{time}' for time in range(rng.integers(8, 14))]
    (root / 'log.csv').write_text('\n'.join(lines))
    return root


def begin(root, workdir, count, devices, *more, **options) -> list[subprocess.Popen]:
    flags = (
        '--dataset=interactions', '--preset=published', f'--data_dir={root / "log.csv"}', '--user_column=user',
        '--item_column=item', '--time_column=time', '--separator=,', *SETTINGS, *more,
    )
    return start(count, root / workdir, *flags, devices=devices, cwd=root, **options)


def records(root, workdir) -> list[dict]:
    return [json.loads(line) for line in (root / workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_same_run(root, ours, theirs):
    """Every step once, with the loss of the other run; the same metrics and as good as the same ranks."""
    pairs = list(zip(records(root, ours), records(root, theirs), strict=True))
    for a, b in pairs:
        assert (a['kind'], a['step']) == (b['kind'], b['step'])
        for name in ('loss', 'epoch_loss', 'NDCG@10', 'HR@20'):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=2e-4), (name, a)
    steps = [a['step'] for a, _ in pairs if a['kind'] == 'train']
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20


def succeeded(done):
    for process in done:
        assert process.returncode == 0, process.stderr[-2000:]


@pytest.fixture(scope='module')
def single(root):
    succeeded(finished(begin(root, 'single', 1, 4)))
    return 'single'


def test_two_processes_give_one_process_s_run(root, single):
    done = finished(begin(root, 'two', 2, 2))
    succeeded(done)
    assert_same_run(root, 'two', single)
    assert 'best epoch' in done[0].stdout and done[1].stdout.replace('[Gloo]', '').count('epoch') == 0
    result = json.loads((root / 'two' / 'result.json').read_text())
    assert result['processes'] == 2 and result['devices'] == 4 and result['checkpoint_wait_seconds'] > 0
    (root / 'two' / 'result.json').unlink()
    succeeded(finished(begin(root, 'two', 1, 1)))
    again = json.loads((root / 'two' / 'result.json').read_text())
    assert again['parameters_sha256'] == result['parameters_sha256'] and again['processes'] == 1


@pytest.mark.slow
def test_processes_that_share_the_table(root, single):
    succeeded(finished(begin(root, 'shared', 4, 1, '--model_shards=4')))
    assert_same_run(root, 'shared', single)


@pytest.fixture
def signalled(root, tmp_path, monkeypatch):
    """Starts a run of which one process sends itself a signal after some batches."""
    def begun(workdir, count, devices, *more, after, process=-1, number=signal.SIGTERM):
        told = {'RECORD_IN': tmp_path, 'STOP_AFTER': after, 'STOPPED': process, 'STOP_BY': int(number)}
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))
        return begin(root, workdir, count, devices, *more, program=('-m', 'tests.recorded_train'))

    return begun


@pytest.mark.slow
def test_sigterm_to_one_saves_on_all_and_another_process_count_goes_on(root, single, signalled):
    done = finished(signalled('elastic', 2, 2, after=6))
    assert [process.returncode for process in done] == [128 + signal.SIGTERM] * 2, done[0].stderr[-2000:]
    assert 'stopped and saved' in done[0].stdout
    assert not (root / 'elastic' / 'result.json').exists()
    done = finished(begin(root, 'elastic', 4, 1, '--model_shards=4'))
    succeeded(done)
    assert 'going on from step' in done[0].stdout
    assert_same_run(root, 'elastic', single)


@pytest.mark.slow
def test_each_example_of_an_epoch_is_seen_once_by_4_then_1_then_2_then_4_processes(root, single, monkeypatch):
    """Counted where batches go onto the devices; three stops in the first epoch."""
    steps = []
    for number, (count, devices, shards) in enumerate([(4, 1, 2), (1, 2, 1), (2, 2, 4), (4, 1, 1)]):
        folder = root / f'examples{number}'
        folder.mkdir()
        monkeypatch.setenv('RECORD_IN', str(folder))
        monkeypatch.setenv('STOP_AFTER', '4' if number < 3 else '0')
        done = finished(begin(
            root, 'once', count, devices, f'--model_shards={shards}', program=('-m', 'tests.recorded_train')
        ))
        expected = 128 + signal.SIGTERM if number < 3 else 0
        assert [process.returncode for process in done] == [expected] * count, done[0].stderr[-2000:]
        assert ('going on from step' in done[0].stdout) == (number > 0)
        assert ('stopped and saved' in done[0].stdout) == (number < 3) != (root / 'once/result.json').exists()
        by_process = [[json.loads(line) for line in file.read_text().splitlines()] for file in folder.iterdir()]
        assert len(by_process) == count
        steps += [sum(rows, []) for rows in zip(*by_process, strict=True)]
        if number == 2:
            assert len(steps) < 15, 'the last session begins in the first epoch as well'
    users = [line.split(',')[0] for line in (root / 'log.csv').read_text().splitlines()[1:]]
    examples = len(users) - 3 * len(set(users))  # of n items n - 3 prefixes have a target to train on
    epochs = [record['epoch'] for record in records(root, 'once') if record['kind'] == 'train']
    for epoch in (1, 2):
        seen = [ids for at, ids in zip(epochs, steps, strict=True) if at == epoch]
        assert sorted(sum(seen, [])) == list(range(examples))
    assert_same_run(root, 'once', single)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_others_and_the_restart_goes_on(root, single, signalled, victim):
    workdir, often = f'killed{victim}', '--set=train.checkpoint_seconds=0.5'
    done = finished(signalled(workdir, 2, 2, often, after=9, process=victim, number=signal.SIGKILL))
    survivor = done[1 - victim]
    assert done[victim].returncode == -signal.SIGKILL
    assert survivor.returncode != 0 and 'error: ' in survivor.stderr, survivor.stderr[-2000:]
    succeeded(finished(begin(root, workdir, 2, 2, often)))
    assert_same_run(root, workdir, single)


@pytest.mark.parametrize('odd, message', [
    ('--set=train.learning_rate=0.5', 'disagree on train.learning_rate: 0.001 on process 0, 0.5 on process 1'),
    ('--restart', 'disagree on --restart: false on process 0, true on process 1'),
    ('--data_dir=other.csv', 'disagree on the data (fingerprint): "'),
    ('--set=train.learning_rat=1', "--set=train.learning_rat=1: there is no key 'train.learning_rat'"),
])
def test_processes_that_disagree_all_say_so(root, odd, message):
    (root / 'other.csv').write_text((root / 'log.csv').read_text().replace(',33,', ',32,'))
    for process in finished(begin(root, 'odd', 2, 1, of_last=[odd])):
        assert process.returncode == 1 and message in process.stderr, process.stderr[-2000:]


def test_rows_or_tables_that_cannot_be_split_are_refused_by_all(root):
    for flag, message in (
        ('--set=data.rows_per_step=3', 'data.rows_per_step=3 must be a multiple of the 2 devices'),
        ('--model_shards=3', '--model_shards=3 does not divide the 2 devices'),
    ):
        for process in finished(begin(root, 'uneven', 2, 1, flag)):
            assert process.returncode == 1 and message in process.stderr, process.stderr[-2000:]


@pytest.mark.parametrize('late', [0, 1])
def test_a_process_that_comes_late_to_an_error_still_says_it(root, late):
    """Process 0 hosts the coordinator, without which JAX aborts the others."""
    code = f"""
        import time
        import jax
        from absl import flags
        from ssd4rec_jax.commands import distributed
        from ssd4rec_jax.commands.cli import run
        from ssd4rec_jax.errors import UserError
        from tests.patient import be_patient

        def main():
            distributed.join()
            with distributed.failing_together():
                time.sleep(2 if jax.process_index() == {late} else 0)
                raise UserError('what both meet')

        flags.DEFINE_string('workdir', None, '')
        be_patient()
        run(main)
    """
    for process in finished(start(2, root, devices=1, cwd=root, program=('-c', textwrap.dedent(code)))):
        assert process.returncode == 1, process.stderr[-2000:]
        assert 'what both meet' in process.stderr and 'Fatal' not in process.stderr


@pytest.mark.parametrize('number', [0, 1])
def test_a_process_that_meets_nobody_says_where_it_looked(root, number):
    (done,) = finished(begin(
        root, 'alone', 1, 1, '--distributed', f'--coordinator_address=127.0.0.1:{kept_port()}', '--num_processes=2',
        f'--process_id={number}', '--connect_seconds=2',
    ))
    assert done.returncode == 1
    assert 'error: the processes of the run did not all meet at --coordinator_address=127.0.0.1:' in done.stderr
    assert 'within --connect_seconds=2' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('flags, message', [
    (['--process_id=1'], '--process_id needs --distributed'),
    (['--distributed', '--num_processes=2'], 'give all of --coordinator_address, --num_processes and --process_id'),
    (
        ['--distributed', '--num_processes=2', '--process_id=2', '--coordinator_address=a:1'],
        '--process_id=2 must be from 0 to 1',
    ),
    (
        ['--distributed', '--num_processes=2', '--process_id=1', '--coordinator_address=a'],
        '--coordinator_address=a must be HOST:PORT',
    ),
    (['--distributed'], '--distributed: coordinator_address should be defined'),
])
def test_flags_that_do_not_fit_together(root, flags, message):
    done = finished(begin(root, 'flags', 1, 1, *flags))[0]
    assert done.returncode == 1 and done.stderr.startswith(f'error: {message}')
