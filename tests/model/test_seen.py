"""The seen-item term compared with a dense matrix that loops over histories and items, in float64."""
import jax.numpy as jnp
import numpy as np
import pytest

from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.seen import AGES, COUNTS, SeenBias, seen_by_histories, seen_by_prefixes
from tests.packed import pack
from tests.seen import added_by_hand

ITEMS = 9


def drawn_bias(rng):
    bias = SeenBias(jnp.float64)
    bias.age[...] = jnp.asarray(rng.normal(size=len(AGES)))
    bias.times[...] = jnp.asarray(rng.normal(size=len(COUNTS)))
    return bias


def histories(rng, lengths):
    return [rng.integers(1, ITEMS, length).tolist() for length in lengths]


def added(seen, bias, readouts, columns=ITEMS):
    return seen.add_to(jnp.zeros((readouts, columns)), bias.bias)


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
    seen = seen_by_histories(jnp.asarray(batch.items), Layout.of(batch)).one_list(5)
    expected = added_by_hand(
        [row[slot] if slot < len(row) else [] for row in rows for slot in range(5)], bias.age[...], bias.times[...],
        ITEMS,
    )
    np.testing.assert_allclose(added(seen, bias, 15), expected, rtol=0, atol=1e-14)


def test_every_prefix(x64, packed):
    rows, batch = packed
    bias = drawn_bias(np.random.default_rng(1))
    seen = seen_by_prefixes(jnp.asarray(batch.items), Layout.of(batch)).one_list(97)
    prefixes = []
    for row in rows:
        of_row = [history[:end] for history in row for end in range(1, len(history) + 1)]
        prefixes += of_row + [[]] * (97 - len(of_row))
    expected = added_by_hand(prefixes, bias.age[...], bias.times[...], ITEMS)
    np.testing.assert_allclose(added(seen, bias, 3 * 97), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('which, slots', [(seen_by_histories, 5), (seen_by_prefixes, 97)])
def test_parts_and_chosen_columns(x64, packed, which, slots):
    _, batch = packed
    bias = drawn_bias(np.random.default_rng(1))
    seen, rows = which(jnp.asarray(batch.items), Layout.of(batch)).one_list(slots), 3 * slots
    whole = np.asarray(added(seen, bias, rows))
    np.testing.assert_allclose(added(seen.part(first_column=3), bias, rows, 4), whole[:, 3:7], atol=1e-14)
    np.testing.assert_allclose(added(seen.part(first_readout=4), bias, 6), whole[4:10], atol=1e-14)
    part = seen.part(first_readout=4, readouts=6)
    np.testing.assert_allclose(added(part, bias, 8), np.pad(whole[4:10], ((0, 2), (0, 0))), atol=1e-14)
    assert part.readouts.sum() < seen.part(first_readout=4).readouts.sum() < seen.readouts.sum()
    chosen = jnp.asarray([7, 2, ITEMS, 5])  # One of them stands for no item.
    expected = np.stack([whole[:, 7], whole[:, 2], 0 * whole[:, 0], whole[:, 5]], 1)
    np.testing.assert_allclose(added(seen.at_columns(chosen, ITEMS), bias, rows, 4), expected, atol=1e-14)


def test_many_pairs_take_several_trips(x64):
    """A history of 200 items has 20,100 prefixes' pairs at most, more than one trip adds."""
    rng = np.random.default_rng(2)
    history = rng.integers(1, 150, 200).tolist()
    batch = pack([[(0, history)]], tokens=208, segments=1)
    bias = drawn_bias(rng)
    seen = seen_by_prefixes(jnp.asarray(batch.items), Layout.of(batch)).one_list(208)
    assert int(seen.readouts.sum()) > 64 * 208
    expected = added_by_hand([history[:end] for end in range(1, 201)], bias.age[...], bias.times[...], 150)
    np.testing.assert_allclose(added(seen, bias, 208, 150)[:200], expected, atol=1e-12)
