"""Attention in blocks against attention over the whole row, written out by hand."""
import jax
import numpy as np
import pytest

from ssd4rec_jax.model.layout import Layout
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
