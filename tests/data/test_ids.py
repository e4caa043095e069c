"""An index of a vocabulary finds what `positions` finds by reading all of it."""
import numpy as np
import pytest

from ssd4rec_jax.data import ids
from ssd4rec_jax.data.ids import IdIndex, positions
from ssd4rec_jax.data.vocabulary import TextIds

WANTED = ['7', ' a b', '-3', '7.0', 'né', '', '12', '007', 'nobody', '99999999999999999999', '-0',
          '\x1c7', '\u20037', '7.00', '-3.0', '7.1', '7\n', '٧']


@pytest.mark.parametrize('vocabulary', [
    TextIds.of(['né', '7', 'a b', '']), np.array([12, -3, 7]), TextIds.of([]), np.array([], np.int64),
], ids=['text', 'integers', 'no text', 'no integers'])
@pytest.mark.parametrize('collide', [False, True])
def test_the_index_finds_the_same(vocabulary, collide, monkeypatch):
    expected = positions(vocabulary, WANTED)
    if collide:
        monkeypatch.setattr(ids, 'hash', lambda id_: 0, raising=False)
    index = IdIndex(vocabulary)
    np.testing.assert_array_equal(index.positions(WANTED), expected)
    np.testing.assert_array_equal(index.positions(WANTED * 1000), np.tile(expected, 1000))
    assert [-1 if (at := index.get(id_)) is None else at for id_ in WANTED] == expected.tolist()
    assert (expected >= 0).any() == (len(vocabulary) > 0) and len(index.positions([])) == 0
