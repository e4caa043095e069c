"""A run saved with its item table on some devices opens on any other number of them."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import save_dataset
from ssd4rec_jax.data.examples import valid_examples
from ssd4rec_jax.errors import CheckpointError
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.host_buffer import host_zeros
from ssd4rec_jax.parallel.mesh import MODEL_AXIS, device_mesh
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.run import model_folder, saved_run
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.train.early_stopping import EarlyStopping
from tests.tiny import DATA, MODEL, TRAIN, tiny_dataset, trainer_in

CONFIG = RunConfig('interactions', MODEL, dataclasses.replace(DATA, rows_per_step=12), TRAIN)


@pytest.fixture(scope='module', params=[1, 3])
def saved_on(request, tmp_path_factory):
    """(folder of a run with one evaluated checkpoint, its parameters whole).

    It is written by as many devices as share the table, whose 31 rows three devices hold with padding.
    """
    root, shards = tmp_path_factory.mktemp('saved'), request.param
    save_dataset(tiny_dataset(), root / 'prepared')
    trainer = trainer_in(root / 'run', data=CONFIG.data, devices=jax.devices()[:shards], model_shards=shards)
    saved_run.write_config(RunFolder(root / 'run'), CONFIG, root / 'prepared')
    session = trainer.session
    session.progress = session.progress.after_epoch(EarlyStopping(0.5, best_epoch=1, best_step=1), 0.5)
    session.save(trainer.state._replace(step=jnp.int32(1)))
    session.checkpoints.wait()
    return root / 'run', trainer.program.network.whole(trainer.state.params)


@pytest.mark.parametrize('shards', [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_it_opens_on_another_number_of_devices_with_the_same_parameters_and_ranks(saved_on, monkeypatch, shards):
    path, params = saved_on
    monkeypatch.setattr(
        saved_run, 'device_mesh', lambda model_shards: device_mesh(jax.devices()[:model_shards], model_shards)
    )
    saved = saved_run.load_run(path, model_shards=shards)
    whole = saved.network.whole(saved.params)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    examples = valid_examples(saved.dataset)
    ranks = [
        Ranker(saved.network, mesh, examples, targets_per_step=64, tokens_per_row=128).ranks(weights, examples)
        for mesh, weights in ((saved.mesh, saved.params), (device_mesh(jax.devices()[:1]), params))
    ]
    # New parameters are small: rounding may swap items that score alike.
    assert np.mean(ranks[0] != ranks[1]) < 0.05 and len(set(ranks[0].tolist())) > 10


@pytest.mark.parametrize('table_dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shards', [1, 2, 4])
def test_a_saved_model_is_read_in_parts_by_any_number_of_devices(tmp_path, monkeypatch, shards, table_dtype):
    """A table of 31 rows in parts of 4 rows, of which a device reads its own."""
    dataset, model = tiny_dataset(), dataclasses.replace(MODEL, table_dtype=table_dtype)
    _, params = init_network(model, dataset.num_items, 3)
    params = jax.tree.map(np.asarray, params)
    row_bytes = params['item_embedding'][0].nbytes
    monkeypatch.setattr(model_folder, 'PART_BYTES', 4 * row_bytes)
    config = dataclasses.replace(CONFIG, model=model)
    model_folder.save_model(tmp_path / 'model', config, dataset, params, step=7, best_epoch=2)
    monkeypatch.setattr(
        saved_run, 'device_mesh', lambda model_shards: device_mesh(jax.devices()[:model_shards], model_shards)
    )
    saved = saved_run.load_run(tmp_path / 'model', model_shards=shards)
    assert (saved.step, saved.best_epoch, saved.config) == (7, 2, config)
    whole = saved.network.whole(saved.params)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True):
        assert ours.dtype == theirs.dtype and np.asarray(ours).tobytes() == theirs.tobytes()
    np.testing.assert_array_equal(saved.item_counts, np.bincount(dataset.items, minlength=31))
    for name in ('items', 'offsets', 'user_ids', 'item_ids'):
        np.testing.assert_array_equal(getattr(saved.dataset, name), getattr(dataset, name))


def test_devices_take_what_was_read_without_a_copy():
    """A copy would stay beside its source until Python collects garbage: the table of five million items twice."""
    place, parts = NamedSharding(device_mesh(model_shards=len(jax.devices())), PartitionSpec(MODEL_AXIS)), []

    def part_of(index):
        parts.append(host_zeros((5, 3), np.dtype(np.float32)))
        parts[-1][:] = index[0].start
        return parts[-1]

    array = jax.make_array_from_callback((5 * len(jax.devices()), 3), place, part_of)
    taken = {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert taken == {part.ctypes.data for part in parts}
    np.testing.assert_array_equal(array[:, 0], np.repeat(np.arange(0, len(array), 5), 5))


@pytest.mark.parametrize('change, said', [
    ({'norm': None}, r'norm.bias is missing there and \(8,\) here'),
    ({'item_embedding': np.zeros((30, 8), np.float32)}, r'item_embedding is \(30, 8\) there and \(31, 8\) here'),
    ({'another': np.zeros(3, np.float32)}, r'another is \(3,\) there and unknown here'),
])
def test_a_model_with_other_parameters_is_refused(tmp_path, change, said):
    """One that is missing must not be taken for zeros."""
    _, params = init_network(MODEL, 30, 3)
    params = {name: value for name, value in {**params, **change}.items() if value is not None}
    params = jax.tree.map(np.asarray, params)
    model_folder.save_model(tmp_path / 'model', CONFIG, tiny_dataset(), params, step=7, best_epoch=2)
    with pytest.raises(CheckpointError, match=said):
        saved_run.load_run(tmp_path / 'model')
