"""The format `vectors`: what a vector search needs, with the encoder of users beside it.

All that ssd4rec_jax.export.program writes, and

    vectors.npy      float32 [items, D], row n of the item ids[n] in load.py; for faiss.IndexFlatIP and its kin
    items.usearch    an HNSW index of them by inner products, with n as the key

Users are `Model(folder).vectors(histories)` of load.py. A search finds the items of the highest inner products. What
the seen-item term and the follower term add is not in them.
"""
from pathlib import Path

import numpy as np

from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.export.program import program_folder
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.saved_run import SavedRun

ASKED = 1000  # users at most, whose lists measure the recall
LIST = 10


def export_vectors(path: Path, saved: SavedRun) -> str:
    """Write the folder; returns the recall of its index in words. UserError as program_folder raises it."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ConfigError("usearch, which builds the index, is missing: pip install 'ssd4rec-jax[export]'") from error
    with program_folder(path, saved, 'vectors') as (folder, rows):
        vectors = np.ascontiguousarray(rows[1:], np.float32)
        index = Index(ndim=vectors.shape[1], metric='ip', dtype='f32')
        index.add(np.arange(len(vectors)), vectors)
        np.save(folder / 'vectors.npy', vectors)
        index.save(folder / 'items.usearch')
        users = _users(saved)
        if not len(users):
            return 'an HNSW index; without histories of users there is nothing to measure its recall with'
        k = min(LIST, len(vectors))
        found = np.asarray(index.search(users, k).keys).reshape(len(users), k)
        recall = recall_of(found, users, vectors)
    return f'recall@{k} of the HNSW index against exact search {recall:.4f}, over {len(users):,} users'


def recall_of(found: np.ndarray, users: np.ndarray, vectors: np.ndarray) -> float:
    """The mean share of the exactly best rows of `vectors` [items, D] for `users` [n, D] that are in found [n, k]."""
    k, hits = found.shape[1], 0
    for row, user in zip(found, users, strict=True):
        hits += len(np.intersect1d(row, np.argpartition(-(vectors @ user), k - 1)[:k]))
    return hits / found.size


def _users(saved: SavedRun) -> np.ndarray:
    """float32 [n, D], the readouts of the whole histories of ASKED users at most, evenly over the log."""
    dataset = saved.dataset
    asked = np.unique(np.linspace(0, dataset.num_users - 1, min(ASKED, dataset.num_users)).astype(int))
    if not len(asked):
        return np.zeros((0, 1), np.float32)
    top = TopItems(saved.network, saved.mesh, saved.params, max_history=saved.config.data.max_history)
    return top.vectors([np.asarray(dataset.items[dataset.offsets[u]:dataset.offsets[u + 1]]) for u in asked])
