"""The full softmax, whole, in chunks of items and tiles of readouts, against NumPy's; rankings a few rows at a time."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.target import tracing_for
from ssd4rec_jax.model.scores import map_scores
from ssd4rec_jax.rank.metrics import ranks
from ssd4rec_jax.train import full_softmax
from ssd4rec_jax.train.full_softmax import softmax_loss_sum

N, ITEMS, WIDTH = 24, 40, 16
REAL = np.arange(N) % 5 != 3


def inputs(dtype=np.float64):
    rng = np.random.default_rng(0)
    readout = 3 * rng.normal(size=(N, WIDTH))
    readout[~REAL] = np.nan  # An empty slot may hold anything.
    return readout.astype(dtype), rng.normal(size=(ITEMS + 1, WIDTH)), np.where(REAL, rng.integers(0, ITEMS + 1, N), 0)


def by_hand():
    """(loss, its gradient with respect to readout, its gradient with respect to the table), in NumPy."""
    readout, table, targets = inputs()
    readout = np.where(REAL[:, None], readout, 0.0)
    logits = readout @ table.T
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    loss = -np.log(softmax[np.arange(N), targets])[REAL].sum()
    error = (softmax - np.eye(ITEMS + 1)[targets]) * REAL[:, None]
    return loss, error @ table, error.T @ readout


@pytest.mark.parametrize('chunk', [ITEMS + 1, ITEMS + 7, 1, 7, 14, 20, ITEMS])
def test_loss_and_gradients_of_any_chunk_size(x64, chunk):
    """With 6 chunks of 7 for 41 items the last one overlaps; with chunks of 40 the last one has one item."""
    readout, table, targets = inputs()

    def loss(readout, table):
        return 1.5 * softmax_loss_sum(readout, table, targets, REAL, max_scores=chunk * N + N - 1)

    value, (dreadout, dtable) = jax.jit(jax.value_and_grad(loss, (0, 1)))(readout, table)
    expected = by_hand()
    assert float(value) == pytest.approx(1.5 * expected[0], rel=1e-13)
    np.testing.assert_allclose(dreadout, 1.5 * expected[1], atol=1e-12)
    np.testing.assert_allclose(dtable, 1.5 * expected[2], atol=1e-12)
    assert (np.asarray(dreadout)[~REAL] == 0).all()


@pytest.mark.parametrize('tile', [1, 7, 12, 23])
def test_loss_and_gradients_of_any_tile_size(x64, monkeypatch, tile):
    """Tiles that the 19 readouts with a target, the other 5 behind them, or neither fill."""
    monkeypatch.setattr(full_softmax, 'TILE', tile)
    test_loss_and_gradients_of_any_chunk_size(None, ITEMS + 1)


def test_tiles_without_a_target_are_not_computed(monkeypatch):
    computed = []

    def counted(shard, *arrays):
        computed.append(arrays[-2])
        return whole_part(shard, *arrays)

    whole_part = full_softmax._whole_part
    monkeypatch.setattr(full_softmax, '_whole_part', counted)
    monkeypatch.setattr(full_softmax, 'TILE', 4)
    readout, table, targets = inputs(np.float32)
    with jax.disable_jit():
        softmax_loss_sum(readout, table, targets, REAL)
    assert [int(real.sum()) for real in computed] == [4, 4, 4, 4, 3]


@pytest.mark.parametrize('chunk', [ITEMS + 1, 7])
def test_bfloat16_readouts_keep_their_sums_in_float32(chunk):
    readout, table, targets = inputs(jnp.bfloat16)
    table = table.astype(np.float32)

    def loss(readout, table):
        return softmax_loss_sum(readout, table, targets, REAL, max_scores=chunk * N)

    value, (dreadout, dtable) = jax.jit(jax.value_and_grad(loss, (0, 1)))(readout, table)
    assert value.dtype == dtable.dtype == jnp.float32 and dreadout.dtype == jnp.bfloat16
    for found, expected in zip((value, dreadout, dtable), by_hand(), strict=True):
        np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


def test_no_array_of_all_scores_exists_above_the_limit():
    readout, table, targets = jnp.zeros((64, 8)), jnp.zeros((5001, 8)), jnp.ones(64, jnp.int32)

    def temporaries(max_scores):
        loss = jax.value_and_grad(
            lambda readout, table: softmax_loss_sum(readout, table, targets, targets > 0, max_scores=max_scores), (0, 1)
        )
        return jax.jit(loss).lower(readout, table).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 64 * 5001
    assert temporaries(64 * 100) < scores / 2 < scores <= temporaries(64 * 5001)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('items, chunked', [(12_101, False), (1_000_000, True)])
def test_a_step_of_beauty_computes_its_scores_once_and_one_of_a_million_items_in_chunks(platform, items, chunked):
    readout, table, targets, real = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
        ((1024, 256), np.float32), ((items + 1, 256), np.float32), ((1024,), np.int32), ((1024,), bool),
    ))
    with tracing_for(platform):
        loss = jax.make_jaxpr(jax.grad(softmax_loss_sum, (0, 1)))(readout, table, targets, real)
        ranking = jax.make_jaxpr(functools.partial(map_scores, ranks))(readout, table, targets)
    for program, at_once in (loss, full_softmax.TILE if platform == 'cpu' else 1024), (ranking, 1024):
        assert ('scan' in str(program)) == chunked
        assert (f'f32[{at_once},{items + 1}]' in str(program)) != chunked


@pytest.mark.parametrize('chunk', [ITEMS + 1, 7])
def test_without_a_target_loss_and_gradients_are_zero(chunk):
    readout, table, targets = inputs(np.float32)
    loss = functools.partial(softmax_loss_sum, max_scores=chunk * N)
    value, grads = jax.value_and_grad(loss, (0, 1))(np.full_like(readout, np.nan), table, targets, np.zeros(N, bool))
    assert value == 0 and not any(np.any(g) for g in grads)


def test_arrays_that_do_not_fit_together_are_refused():
    readout, table, targets = inputs(np.float32)
    with pytest.raises(AssertionError, match='shape'):
        softmax_loss_sum(readout[:, 1:], table, targets, REAL)
    with pytest.raises(AssertionError, match='shape'):
        softmax_loss_sum(readout[1:], table, targets, REAL)


@pytest.mark.parametrize('rows_at_a_time', [1, 5, N - 1])
def test_ranks_of_a_few_rows_at_a_time(rows_at_a_time):
    readout, table, targets = inputs(np.float32)
    readout, targets = np.where(REAL[:, None], readout, 0), np.maximum(targets, 1)
    table = table.astype(np.float32)
    whole = ranks(jnp.asarray(readout @ table.T), jnp.asarray(targets))
    parts = jax.jit(lambda *args: map_scores(ranks, *args, max_scores=(ITEMS + 1) * rows_at_a_time + 1))(
        readout, table, targets
    )
    assert len(set(np.asarray(whole[0]).tolist())) > 5
    for part, all_at_once in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(part, all_at_once)
