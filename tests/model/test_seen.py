"""The seen-item term compared with a dense matrix that loops over histories and items, in float64."""
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.seen import AGES, COUNTS, SeenBias
from tests.packed import pack
from tests.seen import added_by_hand

ITEMS = 9


def drawn_bias(rng):
    bias = SeenBias(jnp.float64)
    bias.age[...] = jnp.asarray(rng.normal(size=len(AGES)))
    bias.count[...] = jnp.asarray(rng.normal(size=len(COUNTS)))
    return bias


def histories(rng, lengths):
    return [rng.integers(1, ITEMS, length).tolist() for length in lengths]


@pytest.fixture
def packed():
    """(rows of histories, their batch): repeats within a history, the same items in neighbours, an empty slot."""
    rng = np.random.default_rng(0)
    rows = [histories(rng, (1, 90, 4)), histories(rng, (7, 2, 30, 1)), [[3, 3, 3], [3], [5, 3, 5, 3, 5, 3]]]
    numbered = [[(10 * r + n, own) for n, own in enumerate(row)] for r, row in enumerate(rows)]
    return rows, pack(numbered, tokens=97, segments=5)


def test_whole_histories(x64, packed):
    rows, batch = packed
    bias = drawn_bias(np.random.default_rng(1))
    entries = bias.of_histories(jnp.asarray(batch.items), Layout.of(batch)).one_list(5)
    expected = added_by_hand(
        [row[slot] if slot < len(row) else [] for row in rows for slot in range(5)], bias.age[...], bias.count[...],
        ITEMS,
    )
    np.testing.assert_allclose(entries.matrix((15, ITEMS)), expected, rtol=0, atol=1e-14)


def test_every_prefix(x64, packed):
    rows, batch = packed
    bias = drawn_bias(np.random.default_rng(1))
    entries = bias.of_prefixes(jnp.asarray(batch.items), Layout.of(batch)).one_list(97)
    prefixes = []
    for row in rows:
        of_row = [history[:end] for history in row for end in range(1, len(history) + 1)]
        prefixes += of_row + [[]] * (97 - len(of_row))
    expected = added_by_hand(prefixes, bias.age[...], bias.count[...], ITEMS)
    np.testing.assert_allclose(entries.matrix((3 * 97, ITEMS)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('form', ['of_histories', 'of_prefixes'])
def test_parts_and_chosen_columns_of_the_matrix(x64, packed, form):
    _, batch = packed
    bias = drawn_bias(np.random.default_rng(1))
    slots = 5 if form == 'of_histories' else 97
    entries = getattr(bias, form)(jnp.asarray(batch.items), Layout.of(batch)).one_list(slots)
    whole = entries.matrix((3 * slots, ITEMS))
    np.testing.assert_array_equal(entries.matrix((3 * slots, 4), 3), whole[:, 3:7])
    chosen = jnp.asarray([7, 2, ITEMS, 5])  # One of them stands for no item.
    added = entries.at_columns(chosen, ITEMS).matrix((3 * slots, 4))
    np.testing.assert_array_equal(added, np.stack([whole[:, 7], whole[:, 2], 0 * whole[:, 0], whole[:, 5]], 1))
    if form == 'of_histories':
        np.testing.assert_array_equal(entries.from_row(4).matrix((6, ITEMS)), whole[4:10])
