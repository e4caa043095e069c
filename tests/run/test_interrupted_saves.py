"""Saves that do not come to their end: killed at any point, or on a disk that takes no more."""
import json
import os
import shutil
import signal
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.run import checkpoints as module
from ssd4rec_jax.run import manifest
from ssd4rec_jax.run.checkpoints import Checkpoints
from tests.run.states import assert_bitwise, names, python, save, state_of

# ---- saves that do not come to their end


class Killed(BaseException):
    """Stands for kill -9: no clean-up of save may run on it."""


def interrupt_before(monkeypatch, point):
    def killed(*args, **kwargs):
        raise Killed
    if point == 'the arrays':
        monkeypatch.setattr(module.ocp.AsyncCheckpointer, 'save', killed)
    elif point == 'the manifest':
        monkeypatch.setattr(manifest, '_fingerprint', killed)
    elif point == 'the sync':
        monkeypatch.setattr(manifest, 'sync_folder', killed)
    elif point == 'the rename':
        monkeypatch.setattr(module.Path, 'rename', killed)
    elif point == 'retirement':
        monkeypatch.setattr(module.shutil, 'rmtree', killed)


@pytest.mark.parametrize('point, newest', [
    ('the arrays', 2), ('the manifest', 2), ('the sync', 2), ('the rename', 2), ('retirement', 3),
])
def test_a_save_killed_at_any_point_leaves_a_sound_newest(two, tmp_path, point, newest):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        interrupt_before(patch, point)
        save(Checkpoints(folder), 3, state_of(3), {'best_step': 3})
    assert any(name.startswith('.partial') for name in names(folder))
    restored = Checkpoints(folder).restore_latest(state_of(0))
    assert restored.step == newest
    assert_bitwise(restored.state, state_of(newest))
    save(Checkpoints(folder), 4, state_of(4), {'best_step': 4})
    assert names(folder) == [str(newest), '4'], 'what was left unfinished is gone'


def test_reading_leaves_a_running_save_alone(two, tmp_path):
    """evaluate may look into the folder while train saves to it."""
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    (folder / '.partial-3-1').mkdir()
    assert Checkpoints(folder).restore_best(state_of(0)).step == 2
    assert names(folder) == ['.partial-3-1', '1', '2']


def test_kill_9_in_the_midst_of_saves(tmp_path):
    """Saves follow one another without a pause, so nearly any moment is inside one."""
    child = subprocess.Popen(python('''
        import sys
        import jax.numpy as jnp
        from ssd4rec_jax.run.checkpoints import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        for step in range(1, 10_000):
            w = jnp.full((64, 64), step, jnp.float32)
            checkpoints.save(step, {'w': w}, {'best_step': step})
            print(step, flush=True)
    ''', tmp_path), stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        printed = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    printed = max([printed, *map(int, child.stdout.read().split())])
    child.wait()
    restored = Checkpoints(tmp_path).restore_latest({'w': jnp.zeros((64, 64))})
    assert restored.step in (printed - 1, printed, printed + 1)
    np.testing.assert_array_equal(restored.state['w'], np.full((64, 64), restored.step, np.float32))
    assert not list(tmp_path.glob('*.damaged'))


def test_a_disk_that_takes_no_more(tmp_path):
    """The kernel refuses writes above a file size, from the smallest file to the largest."""
    result = subprocess.run(python('''
        import json, resource, sys
        from pathlib import Path
        import jax.numpy as jnp, numpy as np
        from ssd4rec_jax.run.checkpoints import Checkpoints
        from ssd4rec_jax.errors import CheckpointError
        folder = Path(sys.argv[1])
        noise = jnp.asarray(np.random.default_rng(0).standard_normal((128, 128)).astype(np.float32))
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, {'w': noise}, {'best_step': 1})
        checkpoints.wait()
        report = []
        def largest_file(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        for limit in (0, 100, 300, 1000, 30_000):
            largest_file(limit)
            try:
                checkpoints.save(2, {'w': noise}, {'best_step': 2})
                checkpoints.wait()
                message = 'saved'
            except CheckpointError as error:
                message = str(error)
            largest_file(resource.RLIM_INFINITY)
            sound = np.array_equal(checkpoints.restore_latest({'w': noise}).state['w'], noise)
            report.append([message, sorted(p.name for p in folder.iterdir()), sound])
        checkpoints.save(2, {'w': noise}, {'best_step': 2})
        print(json.dumps([report, checkpoints.restore_latest({'w': noise}).step]))
    ''', tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report, last = json.loads(result.stdout)
    for message, left, sound in report:
        assert message.startswith(f'checkpoint {tmp_path}/2 cannot be written (')
        assert 'File too large' in message and 'MiB are free there' in message
        assert left == ['1'] and sound
    assert len(report) == 5 and last == 2


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='checkpoint .*file/checkpoints/1 cannot be written'):
        save(Checkpoints(tmp_path / 'file' / 'checkpoints'), 1, state_of(1), {})


def test_meta_that_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match='cannot be written .*JSON'):
        save(Checkpoints(tmp_path), 1, state_of(1), {'loss': float('nan')})
    assert os.listdir(tmp_path) == []
