"""Draws are keyed by example: their rates, their independence, and no influence of where a history lies."""
import numpy as np
import pytest

from ssd4rec_jax.model.draws import Draws, mask_items
from ssd4rec_jax.model.layout import Layout
from tests.packed import pack

ITEMS = list(range(1, 501))


def draws(rows, seed=3, epoch=0, tokens=2000, segments=4):
    layout = Layout.of(pack(rows, tokens=tokens, segments=segments))
    return Draws.of(np.uint32(seed), np.uint32(epoch), layout)


@pytest.mark.parametrize('probability', [0.1, 0.4, 0.9])
def test_rate_is_the_probability(probability):
    hits = np.asarray(draws([[(0, ITEMS), (1, ITEMS)]]).below(probability, 'a', 256))[0, :1000]
    error = np.sqrt(probability * (1 - probability))
    assert abs(hits.mean() - probability) < 4 * error / np.sqrt(hits.size)
    # No channel and no token is dropped or kept as a whole.
    assert abs(hits.mean(0) - probability).max() < 5 * error / np.sqrt(1000)
    assert abs(hits.mean(1) - probability).max() < 5 * error / np.sqrt(256)


def correlation(a, b):
    return np.corrcoef(np.asarray(a).ravel(), np.asarray(b).ravel())[0, 1]


def test_examples_epochs_seeds_streams_positions_and_channels_are_independent():
    one = draws([[(0, ITEMS), (1, ITEMS)]])
    hits = np.asarray(one.below(0.5, 'a', 64))[0]
    first, second = hits[:500], hits[500:1000]
    others = {
        'example': second,
        'stream': np.asarray(one.below(0.5, 'b', 64))[0, :500],
        'epoch': np.asarray(draws([[(0, ITEMS)]], epoch=1).below(0.5, 'a', 64))[0, :500],
        'seed': np.asarray(draws([[(0, ITEMS)]], seed=4).below(0.5, 'a', 64))[0, :500],
        'position': np.roll(first, 1, 0),
        'channel': np.roll(first, 1, 1),
    }
    for name, other in others.items():
        assert abs(correlation(first, other)) < 5 / np.sqrt(first.size), name


def test_a_draw_does_not_depend_on_row_place_or_neighbours():
    alone = np.asarray(draws([[(7, ITEMS)]]).below(0.3, 'a', 16))[0, :500]
    packed = np.asarray(draws([[(1, [5])], [(2, ITEMS), (3, [1, 2]), (7, ITEMS)]]).below(0.3, 'a', 16))[1, 502:1002]
    np.testing.assert_array_equal(alone, packed)


def test_dropout_scales_what_it_keeps():
    x = np.full((1, 2000, 8), 3.0, np.float32)
    one = draws([[(0, ITEMS)]])
    out = np.asarray(one.dropout(x, 0.25, 'a'))
    np.testing.assert_array_equal(out == 0, np.asarray(one.below(0.25, 'a', 8)))
    np.testing.assert_allclose(out[out != 0], 4.0)


def test_masking_replaces_items_by_0_at_the_ratio_the_last_one_too():
    rows = [[(e, [9, 9, 9]) for e in range(r * 400, r * 400 + 400)] for r in range(5)]
    batch = pack(rows, tokens=1200, segments=400)
    layout = Layout.of(batch)
    masks = [np.asarray(mask_items(batch.items, 0.2, Draws.of(np.uint32(1), np.uint32(e), layout))) for e in (0, 1)]
    assert set(np.unique(masks[0])) == {0, 9}
    per_position = (masks[0] == 0).reshape(-1, 3).mean(0)
    assert abs(per_position - 0.2).max() < 4 * np.sqrt(0.16 / 2000)
    assert abs(correlation(masks[0], masks[1])) < 0.06
    np.testing.assert_array_equal(mask_items(batch.items, 0.0, None), batch.items)
