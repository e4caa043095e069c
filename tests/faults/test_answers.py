"""What was answered wrongly, lost or stuck once: one test for each, the commands called inside this process."""
import dataclasses
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors import SafetensorError

from ssd4rec_jax import Recommender
from ssd4rec_jax.commands.train import no_folder_left
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run import folder as run_folder
from ssd4rec_jax.run import manifest, model_folder
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import read_config
from ssd4rec_jax.show import output
from ssd4rec_jax.show.terminal import Terminal
from ssd4rec_jax.train import launch
from ssd4rec_jax.train.stop_signals import StopSignals
from tests.faults.inside import EVALUATE, TINY, call, refused, write_log
from tests.processes import on_one_device
from tests.tiny import TRAIN, Notes, trainer_in

pytestmark = pytest.mark.slow  # Whole trainings take minutes.

RESULT = 'parameters_sha256', 'valid', 'test', 'best_epoch', 'epochs'


def result(root: Path) -> dict:
    whole = json.loads((root / 'run/result.json').read_text())
    return {key: whole[key] for key in RESULT}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


def newest_step(root: Path) -> int:
    return Checkpoints(root / 'run/checkpoints').steps()[-1]


# ---- silent wrong answers


@pytest.mark.parametrize('section, key, value', [
    ('model', 'beta', 0.0), ('data', 'max_history', 2), ('model', 'norm_embedding', False),
    ('model', 'backward_order', 'aligned'), ('model', 'dtype', 'bfloat16'),
])
def test_what_answers_is_the_config_of_the_weights(from_checkpoints, section, key, value):
    expected = call(*EVALUATE, folder=from_checkpoints)
    config = json.loads((from_checkpoints / 'run/config.json').read_text())
    assert config[section][key] != value
    config[section][key] = value
    (from_checkpoints / 'run/config.json').write_text(json.dumps(config))
    done = call(*EVALUATE, folder=from_checkpoints)
    assert expected.code == 0 and (done.code, done.out) == (0, expected.out)
    assert 'is not the config that the newest checkpoint was trained with' in done.err
    assert f'{section}.{key}' in done.err


def test_a_saved_model_names_a_config_json_that_is_not_its_own(root):
    expected = call(*EVALUATE, folder=root)
    config = json.loads((root / 'run/config.json').read_text())
    (root / 'run/config.json').write_text(json.dumps({**config, 'model': {**config['model'], 'beta': 0.0}}))
    done = call(*EVALUATE, folder=root)
    assert expected.err == '' and (done.code, done.out) == (0, expected.out)
    assert 'is not the config that the saved model was trained with' in done.err and 'model.beta' in done.err


@pytest.mark.parametrize('old, new', [('"best_epoch": ', '"best_epoch": 1'), ('"best_epoch"', '"best_epoc"')])
def test_the_final_run_believes_no_damaged_result(root, old, new):
    text = (root / 'run/result.json').read_text()
    assert old in text
    (root / 'run/result.json').write_text(text.replace(old, new, 1))
    refused(call('train', *TINY, '--workdir=final', '--final=run', folder=root), 'run/result.json is damaged')
    assert (root / 'run/result.json').exists() and not (root / 'final').exists()


class Killed(BaseException):
    """Stands for kill -9."""


def test_adoption_that_is_killed_before_its_first_checkpoint_changes_nothing(root, monkeypatch):
    before, expected = contents(root / 'run'), call(*EVALUATE, folder=root).out

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, 'save', killed)
        with pytest.raises(Killed):
            call('train', *TINY, '--set=model.beta=0.0', '--set=train.max_epochs=3', '--adopt_config', folder=root)
    after = contents(root / 'run')
    assert {name for name in before if before[name] != after.get(name)} == {'metrics.jsonl'}, 'which is derived'
    assert call(*EVALUATE, folder=root).out == expected
    done = call('train', *TINY, '--set=model.beta=0.0', '--set=train.max_epochs=3', '--adopt_config', folder=root)
    assert done.code == 0, done
    evaluated = json.loads(call(*EVALUATE, folder=root).out)
    assert evaluated['best_epoch'] == 3 == result(root)['best_epoch'], 'an epoch of the config before is not its best'
    assert {key: evaluated[key] for key in result(root)['test']} == result(root)['test']


def test_a_finished_run_adopts_no_config_that_it_does_not_train_with(root):
    before = contents(root / 'run')
    refused(
        call('train', *TINY, '--set=model.beta=0.0', '--adopt_config', folder=root),
        'has trained all of its 2 epochs', 'go on with --set=train.max_epochs=3 or more, and --adopt_config',
    )
    assert contents(root / 'run') == before
    done = call('train', *TINY, '--set=model.beta=0.0', '--set=train.max_epochs=3', '--adopt_config', folder=root)
    assert done.code == 0 and result(root)['epochs'] == 3
    assert any(name.startswith('result.json.old') for name in os.listdir(root / 'run')), 'the old result is kept'


def test_a_finished_run_adopts_a_setting_of_the_log_at_once(root):
    expected = result(root)
    done = call('train', *TINY, '--set=train.log_every=7', '--adopt_config', folder=root)
    assert done.code == 0 and result(root) == expected
    assert call('train', *TINY, '--set=train.log_every=7', folder=root).code == 0
    assert json.loads((root / 'run/config.json').read_text())['train']['log_every'] == 7


def test_what_was_seen_before_max_history_is_excluded_too(tmp_path):
    write_log(tmp_path / 'log.csv', items=30)
    assert call('train', *TINY, '--set=data.max_history=2', '--set=train.max_epochs=1', folder=tmp_path).code == 0
    seen = {line.split(',')[1] for line in (tmp_path / 'log.csv').read_text().splitlines() if line.startswith('3,')}
    done = call('recommend', '--workdir=run', '--users=3', '--k=30', '--exclude_seen', folder=tmp_path)
    items = [line.split('\t')[2] for line in done.out.splitlines() if line.startswith('3\t')]
    assert done.code == 0 and len(items) == 30 - len(seen) and not seen & set(items)


@pytest.mark.parametrize('old, new', [
    ('"HR@10": 0.', '"HR@10": 0.0'), ('"best_epoch"', '"best_epoc"'), ('"seal"', '"sea1"'),
])
def test_a_changed_result_is_computed_again(root, old, new):
    expected, table = result(root), call('train', *TINY, folder=root).out.split('is finished:\n', 1)[1]
    text = (root / 'run/result.json').read_text()
    assert old in text
    (root / 'run/result.json').write_text(text.replace(old, new, 1))
    done = call('train', *TINY, folder=root)
    assert done.code == 0 and 'result.json is damaged' in done.err and result(root) == expected
    assert table.split(' parameters, ')[0] in done.out
    assert (root / 'run/result.json.damaged').exists()


def test_a_result_without_a_checksum_is_believed_if_it_is_whole(root):
    written = json.loads((root / 'run/result.json').read_text())
    # As versions wrote it then.
    written = {key: value for key, value in written.items() if key in run_folder._UNSEALED_KEYS}
    for odd, damaged in (({}, False), ({'test': {}}, True), ({'epochs': 'two'}, True), ({'best_epoch': True}, True)):
        (root / 'run/result.json').write_text(json.dumps({**written, **odd}))
        assert (RunFolder(root / 'run').read_result() is None) == damaged


def test_a_bad_line_of_the_log_stops_no_resume(root):
    log = root / 'run/metrics.jsonl'
    expected = result(root)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b''.join([*lines[:2], b'{"step": "two"}\n', b'\xff\x00\n', b'[]\n', *lines[2:]]))
    damaged = log.read_bytes()
    (root / 'run/result.json').unlink()
    done = call('train', *TINY, folder=root)
    assert done.code == 0 and 'metrics.jsonl:3 is not a record' in done.err and '3 damaged lines' in done.err
    assert result(root) == expected and (root / 'run/metrics.jsonl.damaged').read_bytes() == damaged
    assert len(log.read_bytes().splitlines()) == len(lines)


def test_a_downloaded_log_must_give_the_official_counts(tmp_path):
    folder = tmp_path / 'data/amazon-beauty'
    folder.mkdir(parents=True)
    rows = [f'A{u},B{i},5.0,{1_369_500_000 + 86_400 * i}' for u in range(8) for i in range(8)]
    (folder / 'ratings_Beauty.csv').write_text('\n'.join(rows) + '\n')
    arguments = 'prepare', '--dataset=amazon-beauty'
    refused(call(*arguments, folder=tmp_path), '8 users, 8 items and 64 interactions', '22,363, 12,101 and 198,502')
    assert call(*arguments, '--data_dir=data/amazon-beauty', folder=tmp_path).code == 0, "a log of one's own"


# ---- lost or stuck


class Breaks(Reporter):
    """Fails at a step, as a terminal that is gone once did."""

    def __init__(self, step: int):
        self.left = step

    def step(self, loss, targets_per_second):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError('the reporter breaks')


def test_leaving_the_loop_waits_for_the_checkpoint_under_way(tmp_path, monkeypatch):
    complete = Checkpoints._complete

    def slowly(self, *args):
        time.sleep(0.5)
        complete(self, *args)

    monkeypatch.setattr(Checkpoints, '_complete', slowly)
    trainer = trainer_in(tmp_path, train=dataclasses.replace(TRAIN, checkpoint_seconds=1e-6), reporter=Breaks(3))
    with pytest.raises(RuntimeError, match='the reporter breaks'):
        trainer.run()
    assert not list((tmp_path / 'checkpoints').glob('.partial*')) and newest_step_of(tmp_path) >= 1


def newest_step_of(path: Path) -> int:
    return max(int(p.name) for p in (path / 'checkpoints').iterdir() if p.name.isdigit())


class Failing(io.StringIO):
    """A stream that fails after some writes."""

    encoding = 'ascii'  # type: ignore[assignment]

    def __init__(self, error: OSError, after: int):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        text.encode('ascii')
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


def test_a_terminal_that_is_narrow_or_gone_ends_no_training(monkeypatch):
    stream = Failing(BrokenPipeError(), after=2)
    monkeypatch.setattr(sys, 'stdout', stream)
    terminal = Terminal()
    terminal.note('XLA compiles …')
    with terminal.compiling('é'):
        terminal.epoch(1, 0, 3)
        terminal.step(1.0, 2.0)
    terminal.result({
        'dataset': 'd', 'best_epoch': 1, 'epochs': 2,
        'test': dict.fromkeys(('HR@10', 'NDCG@10', 'MRR@10', 'HR@20', 'NDCG@20', 'MRR@20'), 0.5),
        'parameters': 1, 'train_seconds': 1.0, 'targets/s': 1.0, 'tokens/s': 1.0, 'packing_fill': 1.0, 'backend': 'cpu',
    }, 'ssd4rec')
    assert 'XLA compiles ?' in stream.getvalue()


@pytest.mark.parametrize('error, kind, message', [
    (BrokenPipeError(), output.StdoutClosed, None),
    (OSError(28, 'No space left on device'), UserError, 'No space left'),
])
def test_an_answer_that_cannot_be_delivered_is_no_success(monkeypatch, error, kind, message):
    monkeypatch.setattr(sys, 'stdout', Failing(error, after=0))
    with pytest.raises(kind, match=message):
        output.write_stdout('answer\n')
    monkeypatch.setattr(sys, 'stdout', Failing(error, after=9))
    with pytest.raises(UserError, match=r'cannot show \\xe9: set PYTHONIOENCODING=utf-8'):
        output.write_stdout('é\n')
    monkeypatch.setattr(sys, 'stdout', None)
    with pytest.raises(UserError, match='stdout is closed'):
        output.write_stdout('answer\n')


@pytest.mark.parametrize('redirection, code, said', [
    ('', 141, ''),
    ('> /dev/full', 1, 'error: the answer cannot be written to stdout'),
    ('>&-', 1, 'stdout is closed'),
])
def test_prepare_ends_quietly_and_not_with_0(finished, redirection, code, said):
    """The command itself, whose interpreter must not complain when it ends either."""
    arguments = '--dataset=interactions --data_dir=log.csv --output=out'
    command = f'"{sys.executable}" -m experiments.prepare {arguments}; echo $? >&2'
    reader, writer = os.pipe()
    os.close(reader)  # as `| true` ends before anything is written
    with os.fdopen(writer, 'wb') as gone:
        done = subprocess.run(
            ['bash', '-c', f'( {command} ) {redirection}'], cwd=finished, env=on_one_device(), stdout=gone,
            stderr=subprocess.PIPE, text=True,
        )
    lines = [line for line in done.stderr.splitlines() if 'since 1970' not in line]
    assert lines[-1] == str(code) and len(lines) == 1 + bool(said) and said in lines[0], done.stderr


def test_a_training_whose_reader_has_gone_ends_well(tmp_path):
    write_log(tmp_path / 'log.csv')
    env = on_one_device(PYTHONIOENCODING='latin-1')
    command = f'"{sys.executable}" -m experiments.train {" ".join(TINY)}; echo $? >&2'
    done = subprocess.run(
        ['bash', '-c', f'( {command} ) | head -3'], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == '0' and 'Traceback' not in done.stderr, done.stderr
    assert result(tmp_path)['epochs'] == 2


def test_a_damaged_best_checkpoint_is_met_at_the_start_and_the_next_best_taken(tmp_path):
    first = trainer_in(tmp_path, train=dataclasses.replace(TRAIN, max_epochs=3, checkpoint_seconds=0.0))
    scores = iter([0.5, 0.2, 0.3, 0.1])
    zeros = {f'{m}@{k}': 0.0 for m in ('HR', 'NDCG', 'MRR') for k in (10, 20)}
    first._ranker.metrics = lambda *_: zeros | {'NDCG@10': next(scores, 0.0)}
    assert first.run() is not None
    steps = first.session.checkpoints.steps()
    assert len(steps) == 3
    (tmp_path / 'checkpoints' / str(steps[0]) / 'meta.json').write_text('{}')
    train = first.config.train
    del first
    said = Notes()
    again = trainer_in(tmp_path, train=train, reporter=said)
    assert any(f'best epoch, 1 (step {steps[0]}), are lost: epoch 3 (step {steps[2]})' in note for note in said.notes)
    stopping = again.session.progress.stopping
    assert (stopping.best, stopping.best_epoch, stopping.best_step, stopping.worse) == (0.3, 3, steps[2], 0)
    assert (tmp_path / 'checkpoints' / f'{steps[0]}.damaged').exists()


@pytest.mark.parametrize('failing', ['best checkpoint', 'result.json'])
def test_what_a_disk_fails_to_read_is_not_taken_for_lost(root, monkeypatch, failing):
    kept = Checkpoints(root / 'run/checkpoints')
    best, before, more = kept.best_step(), contents(root / 'run'), (*TINY, '--set=train.max_epochs=3', '--adopt_config')
    assert best != kept.steps()[-1]
    fingerprint, read_bytes = manifest._fingerprint, Path.read_bytes

    def fails_to_verify(path):
        if path.parts[-3:-1] == (str(best), 'arrays') or path.parts[-2] == str(best):
            raise OSError(5, 'Input/output error')
        return fingerprint(path)

    def fails_to_read(path):
        if path.name == 'result.json':
            raise OSError(5, 'Input/output error')
        return read_bytes(path)

    with monkeypatch.context() as patch:
        if failing == 'result.json':
            patch.setattr(Path, 'read_bytes', fails_to_read)
            refused(call('train', *TINY, folder=root), 'result.json cannot be read')
        else:
            patch.setattr(manifest, '_fingerprint', fails_to_verify)
            refused(call('train', *more, folder=root), f'checkpoints/{best} cannot be read')
    assert contents(root / 'run') == before
    assert call('train', *more, folder=root).code == 0
    assert json.loads(call(*EVALUATE, folder=root).out)['best_epoch'] == 1


def test_a_full_disk_is_a_sentence_in_whatever_library_it_is_met(root, monkeypatch):
    before = contents(root / 'run')
    full = pl.exceptions.ComputeError('parquet: File out of specification: No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, 'write_parquet', raising(full))
        table = 'recommend', '--workdir=run', '--users=1', '--output=table.parquet'
        refused(call(*table, folder=root), 'table.parquet cannot be written', 'No space left')
    assert not list(root.glob('*table*')) and call(*table, folder=root).code == 0
    (root / 'run/result.json').unlink()
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, 'save_file', raising(SafetensorError('I/O error: No space left on device')))
        refused(call('train', *TINY, folder=root), 'a saved model cannot be written', 'No space left', 'make room')
    assert call('train', *TINY, folder=root).code == 0 and contents(root / 'run/model') == {
        name.removeprefix('model/'): content for name, content in before.items() if name.startswith('model/')
    }


def raising(error):
    def fails(*args, **kwargs):
        raise error

    return fails


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_terminal_saves_unless_it_was_to_be_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop = StopSignals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.requested() and stop.exit_code == 128 + signal.SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested()


def test_a_run_is_held_until_it_lies_aside(root, monkeypatch):
    held, rename = [], Path.rename

    def checked(self, target):
        if self == root / 'run':
            with open(self / '.lock') as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', checked)
    launch._move_aside(root / 'run', Reporter())
    assert held == [root / 'run.1'] and not (root / 'run').exists()


def test_a_lock_of_a_folder_that_was_just_set_aside_holds_nothing(tmp_path, monkeypatch):
    flock = fcntl.flock

    def overtaken(file, how):
        flock(file, how)
        (tmp_path / 'run').rename(tmp_path / 'run.1')

    monkeypatch.setattr(fcntl, 'flock', overtaken)
    with pytest.raises(UserError, match='another process'):
        RunFolder(tmp_path / 'run').lock()


def test_a_failed_start_leaves_the_folder_to_a_process_that_has_begun_in_it(tmp_path):
    other = RunFolder(tmp_path / 'new/run')
    with pytest.raises(ValueError), no_folder_left(tmp_path / 'new/run'):
        other.lock()
        raise ValueError
    assert (tmp_path / 'new/run/.lock').exists()
    other.release()
    with pytest.raises(ValueError), no_folder_left(tmp_path / 'next/run'):
        other = RunFolder(tmp_path / 'next/run')
        other.lock()
        other.release()
        raise ValueError
    assert not (tmp_path / 'next').exists()


def test_an_error_that_somebody_keeps_keeps_no_folder(finished, tmp_path):
    config = read_config(RunFolder(finished / 'run'))[0]
    recommender = Recommender(config=config, settings={'train.learning_rate': 1e30})
    with pytest.raises(UserError, match='not finite') as kept:
        recommender.fit(finished / 'log.csv', workdir=tmp_path / 'run', reporter=Reporter())
    RunFolder(tmp_path / 'run').lock()
    assert kept.value.__traceback__ is not None
