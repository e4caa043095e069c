"""Checkpoints: bitwise restore, retention, damage of any byte noticed, killed and failing saves."""
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.run import checkpoints as module
from ssd4rec_jax.run import manifest
from ssd4rec_jax.run.checkpoints import Checkpoints
from tests.run.states import assert_bitwise, contents, files, names, python, save, state_of

# ---- what is saved comes back


def test_restores_bitwise_and_the_newest(tmp_path):
    saved = state_of(20)
    odd = jnp.asarray(np.array([[np.nan, -0.0, np.inf], [1e-45, -np.inf, 3.0]], np.float32))
    saved = saved._replace(params={**saved.params, 'odd': odd})
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints')
    save(checkpoints, 10, jax.tree.map(jnp.zeros_like, saved), {'epoch': 1})
    save(checkpoints, 20, saved, {'epoch': 2, 'best_step': 10, 'best': 0.0125})
    restored = Checkpoints(tmp_path / 'run' / 'checkpoints').restore_latest(
        jax.tree.map(jnp.ones_like, saved)
    )
    assert restored.step == 20
    assert restored.meta == {'epoch': 2, 'best_step': 10, 'best': 0.0125}
    assert_bitwise(restored.state, saved)


def test_restores_to_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    saved = {'a': jnp.arange(32.0).reshape(8, 4), 'b': jnp.arange(3)}
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, jax.device_put(saved, jax.devices()[5]), {})
    like = {
        'a': jax.device_put(jnp.zeros((8, 4)), NamedSharding(mesh, PartitionSpec('data'))),
        'b': jax.device_put(jnp.zeros(3, jnp.int32), NamedSharding(mesh, PartitionSpec())),
    }
    restored = checkpoints.restore_latest(like).state
    assert_bitwise(restored, saved)
    assert {k: v.sharding for k, v in restored.items()} == {k: v.sharding for k, v in like.items()}


def test_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'absent')
    assert checkpoints.steps() == []
    assert checkpoints.restore_latest(state_of(0)) is None
    with pytest.raises(CheckpointError, match='absent holds no evaluated checkpoint yet'):
        checkpoints.restore_best(state_of(0))
    save(checkpoints, 3, state_of(3), {'best_step': None})
    with pytest.raises(CheckpointError, match='train at least one epoch'):
        checkpoints.restore_best(state_of(0))


@pytest.mark.parametrize('change, message', [
    (lambda s: state_of(0, width=4),
     r'params.embedding is float32\[5, 3\] there and float32\[5, 4\] here'),
    (lambda s: s._replace(step=jnp.float32(0)), r'step is int32\[\] there and float32\[\] here'),
    (lambda s: s._replace(params={**s.params, 'w': jnp.zeros(2)}),
     r'params.w is absent there and float32\[2\] here'),
    (lambda s: s._replace(params={'embedding': s.params['embedding']}),
     r'params.layers.0.bias is bfloat16\[3\] there and absent here'),
])
def test_a_state_of_another_kind_names_the_array(tmp_path, change, message):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, state_of(1), {})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore_latest(change(state_of(0)))
    assert names(tmp_path) == ['1'], 'it is not damaged'


# ---- retention


def test_keeps_the_newest_two_and_what_they_name_as_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    kept = []
    for step, best in [(10, None), (20, 20), (30, 20), (40, 20), (50, 50), (60, 50), (70, 50)]:
        save(checkpoints, step, {'w': jnp.float32(step)}, {'best_step': best})
        kept.append(checkpoints.steps())
    assert kept == [[10], [10, 20], [20, 30], [20, 30, 40], [20, 40, 50], [50, 60], [50, 60, 70]]
    assert names(tmp_path) == ['50', '60', '70']
    best = checkpoints.restore_best({'w': jnp.float32(0)})
    assert (best.step, float(best.state['w'])) == (50, 50.0)


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (9, 10, 100):
        save(checkpoints, step, {'w': jnp.float32(step)}, {})
    assert checkpoints.restore_latest({'w': jnp.float32(0)}).step == 100


def test_a_step_saved_again_is_what_restores(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 5, {'w': jnp.float32(1)}, {})
    save(checkpoints, 5, {'w': jnp.float32(2)}, {})
    assert float(checkpoints.restore_latest({'w': jnp.float32(0)}).state['w']) == 2.0


# ---- while training goes on


def test_what_is_written_is_what_the_arrays_held_when_save_was_called(tmp_path):
    """A train step takes the state's buffers for its results as soon as save returns."""
    overwrite = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)
    mesh = jax.make_mesh((8,), ('model',), axis_types=(AxisType.Auto,))
    for sharding in (None, NamedSharding(mesh, PartitionSpec('model'))):
        folder = tmp_path / str(sharding is None)
        value = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
        checkpoints, w = Checkpoints(folder), jax.device_put(jnp.array(value), sharding)
        checkpoints.save(1, {'w': w}, {})
        jax.block_until_ready(overwrite(w))
        np.testing.assert_array_equal(checkpoints.restore_latest({'w': jnp.zeros(value.shape)}).state['w'], value)
        assert checkpoints.seconds_waited > 0


def test_an_error_of_the_background_comes_with_the_next_call(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, state_of(1), {})
    monkeypatch.setattr(module, 'write_manifest', lambda folder: os.stat(folder / 'absent'))
    checkpoints.save(2, state_of(2), {})
    with pytest.raises(CheckpointError, match='checkpoint .*/2 cannot be written .*No such file'):
        checkpoints.save(3, state_of(3), {})
    assert names(tmp_path) == ['1']


@pytest.mark.parametrize('shards', [1, 2, 8])
def test_an_item_table_comes_back_with_another_padding(tmp_path, shards):
    """Saved by 4 devices that share the table, restored by 1, 2 and 8, and back."""
    def placed(shards, values):
        mesh = jax.make_mesh((8 // shards, shards), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)
        padded = np.zeros((-(-21 // shards) * shards, 3), np.float32)
        padded[:21] = values
        by_row = NamedSharding(mesh, PartitionSpec('model'))
        return {'item_embedding': jax.device_put(padded, by_row), 'step': jnp.int32(7)}

    values = np.random.default_rng(0).standard_normal((21, 3)).astype(np.float32)
    checkpoints = Checkpoints(tmp_path, rows=21)
    save(checkpoints, 1, placed(4, values), {})
    for step, there in ((2, shards), (3, 4)):
        like = placed(there, np.ones((21, 3)))
        state = checkpoints.restore_latest(like).state
        np.testing.assert_array_equal(state['item_embedding'], placed(there, values)['item_embedding'])
        assert state['item_embedding'].sharding == like['item_embedding'].sharding and int(state['step']) == 7
        save(checkpoints, step, state, {})
    with pytest.raises(CheckpointError, match=r'item_embedding is float32\[24, 3\] there and float32\[20, 3\] here'):
        checkpoints.restore_latest({'item_embedding': jnp.zeros((20, 3)), 'step': jnp.int32(0)})
    with pytest.raises(CheckpointError, match='belongs to another config'):
        Checkpoints(tmp_path).restore_latest({'item_embedding': jnp.zeros((21, 3)), 'step': jnp.int32(0)})


# ---- damage


def assert_falls_back(two, tmp_path, caplog, damage):
    """`damage(folder of checkpoint 2)` returns the name of the file that the warning must hold."""
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    name = damage(folder / '2')
    damaged = contents(folder / '2')
    caplog.clear()
    restored = Checkpoints(folder).restore_latest(state_of(0))
    assert restored.step == 1 and restored.meta == {'best_step': 1}
    assert_bitwise(restored.state, state_of(1))
    assert names(folder) == ['1', '2.damaged']
    assert contents(folder / '2.damaged') == damaged, 'kept aside as it was found'
    [warning] = caplog.records
    assert warning.levelname == 'WARNING' and name in warning.getMessage()
    shutil.rmtree(folder)


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_byte_in_any_file_is_noticed(two, tmp_path, caplog):
    there = files(two / '2')
    assert {'meta.json', 'manifest.json'} < {p.name for p in there} and len(there) > 5
    rng = np.random.default_rng(0)
    for path in there:
        size = path.stat().st_size
        for position in {0, size - 1, int(rng.integers(size))}:
            def damage(checkpoint, path=path, position=position):
                flip(checkpoint / path.relative_to(two / '2'), position, int(rng.integers(8)))
                return path.name
            assert_falls_back(two, tmp_path, caplog, damage)


def test_any_byte_of_the_manifest_is_noticed(two, tmp_path):
    """The one file whose digest stands nowhere."""
    folder = tmp_path / '2'
    shutil.copytree(two / '2', folder)
    sound = (folder / 'manifest.json').read_bytes()
    manifest.verify(folder)
    for position in range(len(sound)):
        flip(folder / 'manifest.json', position, bit=position % 8)
        with pytest.raises(manifest.Damaged):
            manifest.verify(folder)
        (folder / 'manifest.json').write_bytes(sound)


@pytest.mark.parametrize('how', ['truncated', 'emptied', 'missing', 'extra'])
def test_other_damage_to_any_file_is_noticed(two, tmp_path, caplog, how):
    for path in files(two / '2'):
        def damage(checkpoint, path=path):
            victim = checkpoint / path.relative_to(two / '2')
            if how == 'truncated':
                victim.write_bytes(victim.read_bytes()[:-1])
            elif how == 'emptied':
                victim.write_bytes(b'')
            elif how == 'missing':
                victim.unlink()
            else:
                victim = victim.with_name('stray')
                victim.touch()
            return victim.name
        assert_falls_back(two, tmp_path, caplog, damage)


def test_no_sound_checkpoint_is_an_error_and_nothing_is_deleted(two, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    for step in ('1', '2'):
        (folder / step / 'meta.json').unlink()
    with pytest.raises(CheckpointError, match='no checkpoint in .* is sound'):
        Checkpoints(folder).restore_latest(state_of(0))
    assert names(folder) == ['1.damaged', '2.damaged']


def test_a_run_that_fell_back_saves_the_step_again(two, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    for _ in range(2):
        (folder / '2' / 'meta.json').unlink()
        checkpoints = Checkpoints(folder)
        assert checkpoints.restore_latest(state_of(0)).step == 1
        save(checkpoints, 2, state_of(2), {'best_step': 2})
    assert checkpoints.restore_latest(state_of(0)).step == 2
    assert names(folder) == ['1', '2', '2.damaged', '2.damaged.1']


@pytest.mark.parametrize('how', ['flipped', 'gone'])
def test_the_best_of_the_others_takes_the_place_of_a_damaged_best(tmp_path, caplog, how):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step, score, in_epoch in ((1, 0.9, 0), (2, 0.7, 0), (3, 0.6, 0), (4, None, 1)):
        meta = {'best_step': 1, 'epoch': min(step, 3), 'step_in_epoch': in_epoch, 'score': score}
        save(checkpoints, step, state_of(step), meta)
    assert names(tmp_path) == ['1', '2', '3', '4']
    if how == 'gone':
        shutil.rmtree(tmp_path / '1')
    else:
        flip(tmp_path / '1' / 'meta.json', 0, 0)
    best = checkpoints.restore_best(state_of(0))
    assert best.step == 2
    assert_bitwise(best.state, state_of(2))
    assert '/1 is' in caplog.text and 'the best of the others takes its place' in caplog.text
    assert ('1' in names(tmp_path)) == (how == 'flipped'), 'reading renames nothing'
    assert checkpoints.best_step(set_aside=True) == 2 and '1' not in names(tmp_path)
    for step in (2, 3):
        flip(tmp_path / str(step) / 'meta.json', 0, 0)
    with pytest.raises(CheckpointError, match='no other that ends an epoch is kept: the same training command goes on'):
        checkpoints.restore_best(state_of(0))


def test_a_damaged_newest_on_a_read_only_disk_is_passed_over(two, tmp_path, monkeypatch, caplog):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    flip(folder / '2' / 'meta.json', 0, 0)

    def read_only(*args):
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(module.Path, 'rename', read_only)
    assert Checkpoints(folder).restore_best(state_of(0)).step == 1
    assert '/2 is damaged' in caplog.text
    with pytest.raises(CheckpointError, match='cannot be set aside .*Read-only'):
        Checkpoints(folder).restore_latest(state_of(0))


def test_a_folder_whose_name_only_looks_like_a_step_is_none(two, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    for odd in ('²', '٣', '07', '1.damaged'):
        (folder / odd).mkdir()
    assert Checkpoints(folder).steps() == [1, 2]
    assert Checkpoints(folder).restore_best(state_of(0)).step == 2


def test_a_step_that_was_replaced_halfway_is_put_back(two, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two, folder)
    (folder / '2').rename(folder / '2.replaced')
    assert Checkpoints(folder).restore_latest(state_of(0)).step == 2 and names(folder) == ['1', '2']


def test_close_waits_for_the_checkpoint_under_way(tmp_path):
    """As the end of a process with an error does: what was begun is whole."""
    result = subprocess.run(python('''
        import sys
        import jax.numpy as jnp
        from ssd4rec_jax.run.checkpoints import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        try:
            checkpoints.save(1, {'w': jnp.ones((1024, 1024))}, {})
            raise OSError('the error')
        finally:
            checkpoints.close()
    ''', tmp_path), capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count('Traceback') == 1 and 'OSError: the error' in result.stderr
    assert names(tmp_path) == ['1']
    assert Checkpoints(tmp_path).restore_latest({'w': jnp.zeros((1024, 1024))}).step == 1
