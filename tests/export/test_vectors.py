"""Item vectors for a vector search, and the recall of its index."""
import sys

import numpy as np
import pytest

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.export import program
from ssd4rec_jax.export.vectors import export_vectors, recall_of
from tests.export.runs import saved_run


def test_recall_is_the_share_of_the_exactly_best():
    vectors = np.eye(4, dtype=np.float32)
    users = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
    assert recall_of(np.array([[1, 0], [3, 2]]), users, vectors) == 1
    assert recall_of(np.array([[0, 2], [1, 0]]), users, vectors) == 0.25
    assert recall_of(np.array([[0], [0]]), users, vectors) == 0.5


def test_an_index_finds_what_exact_search_finds(tmp_path, monkeypatch):
    index = pytest.importorskip('usearch.index').Index.restore
    monkeypatch.setattr(program, 'PLATFORMS', ['cpu'])
    saved = saved_run(num_layers=1)
    said = export_vectors(tmp_path / 'to', saved)
    # Of 30 items the index looks at all.
    assert said == 'recall@10 of the HNSW index against exact search 1.0000, over 60 users'
    vectors = np.load(tmp_path / 'to/vectors.npy')
    np.testing.assert_array_equal(vectors, Answers(saved).table[1:])
    found = index(tmp_path / 'to/items.usearch').search(vectors[4] * 3, 1).keys
    assert found.tolist() == [int(np.argmax(vectors @ vectors[4]))]
    assert (tmp_path / 'to/load.py').exists()


def test_without_usearch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'usearch.index', None)
    with pytest.raises(ConfigError, match=r"usearch, which builds the index, is missing: pip install .*\[export\]"):
        export_vectors(tmp_path / 'to', saved_run(num_layers=1))
    assert not list(tmp_path.iterdir())
