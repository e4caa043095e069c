"""Attention in blocks against attention over the whole row, written out by hand."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.peers import attention
from ssd4rec_jax.peers.attention import attend
from tests.packed import pack


def by_hand(query, key, value, segment_ids, causal):
    """Each token's read, from all tokens of the row: [rows, tokens, heads, width]."""
    same = segment_ids[:, :, None] == segment_ids[:, None]
    allowed = np.tril(same) if causal else same
    logits = np.einsum('rqhd,rkhd->rhqk', query, key) / query.shape[-1]**0.5
    weights = np.where(allowed[:, None], np.exp(logits), 0)
    return np.einsum('rhqk,rkhd->rqhd', weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('window', [1, 2, 7, 20])
def test_each_token_reads_all_of_a_history_as_long_as_the_window(window, causal):
    longest = min(window, 7)
    lengths = [longest, 1, longest, max(longest - 1, 1), longest]
    batch = pack([list(enumerate([[1] * n for n in lengths]))], tokens=29, segments=5)
    arrays = np.random.default_rng(window).normal(size=(3, 1, 29, 2, 4))
    read = jax.jit(lambda *args: attend(*args, Layout.of(batch), window, 0.0, None, '', causal=causal))
    found = read(*arrays.astype(np.float32))
    real = np.asarray(batch.segment_ids) > 0
    wanted = by_hand(*arrays, np.asarray(batch.segment_ids), causal)
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize('longest,causal', [
    (4, True), (8, False), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((3, False), (15, True))),
])
def test_the_window_that_the_longest_history_needs_changes_nothing(monkeypatch, longest, causal):
    """Windows of 4, 8 and 32: values and gradients of each are those of attention over the whole row."""
    monkeypatch.setattr(attention, 'WINDOWS', (4, 8))
    batch = pack([[(0, [1] * longest), (1, [1, 1]), (2, [1] * (longest - 1))]], tokens=35, segments=3)
    arrays = np.random.default_rng(longest).normal(size=(3, 1, 35, 2, 4)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(1, 35, 2, 4)) * (np.asarray(batch.segment_ids) > 0)[..., None, None]
    draws = Draws.of(jnp.uint32(5), jnp.uint32(1), Layout.of(batch))

    def total(arrays, dropout, window=32):
        read = attend(*arrays, Layout.of(batch), window, dropout, draws, 'drop', causal=causal)
        return jnp.sum(read * weights), read

    (_, found), gradient = jax.jit(jax.value_and_grad(functools.partial(total, dropout=0.0), has_aux=True))(arrays)
    real = np.asarray(batch.segment_ids) > 0
    wanted = by_hand(*arrays, np.asarray(batch.segment_ids), causal)
    np.testing.assert_allclose(np.asarray(found)[real], wanted[real], rtol=0, atol=1e-5)
    monkeypatch.setattr(attention, 'WINDOWS', ())
    np.testing.assert_allclose(gradient, jax.grad(total, has_aux=True)(arrays, 0.0)[0], rtol=0, atol=1e-5)
    whole = total(arrays, 0.4)[1]
    monkeypatch.setattr(attention, 'WINDOWS', (4, 8))
    np.testing.assert_allclose(total(arrays, 0.4)[1][real], whole[real], rtol=0, atol=1e-5)


def test_rows_of_short_histories_have_small_blocks():
    batch = pack([[(0, [1] * 60)]], tokens=1200, segments=1)
    arrays = np.zeros((3, 1, 1200, 1, 4), np.float32)
    program = str(jax.make_jaxpr(lambda *a: attend(*a, Layout.of(batch), 1000, 0.0, None, ''))(*arrays))
    assert program.count('= cond') == 1 and all(f',1,{w // 2},{w + w // 2}]' in program for w in (64, 256, 1000))
    assert '= cond' not in str(jax.make_jaxpr(lambda *a: attend(*a, Layout.of(batch), 50, 0.0, None, ''))(*arrays))
