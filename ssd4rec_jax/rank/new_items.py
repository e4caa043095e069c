"""Vectors for items that training never saw, from the items that they occur beside or from their features."""
from collections.abc import Sequence

import numpy as np
import polars as pl

from ssd4rec_jax.data.dataset import SequenceDataset

RIDGE = 1.0
NEAREST = 5


def neighbour_vectors(table: np.ndarray, neighbours: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [new items, D]: the mean of the vectors of the items that each new item occurs beside.

    table: float32 [items + 1, D]. neighbours: for each new item the internal ids of those items, none empty. The mean
    of many vectors is short; it is given the mean length of the vectors that it is made of, so that it can compete.
    """
    lengths = np.linalg.norm(table, axis=1)
    vectors = np.asarray([table[beside].mean(axis=0) for beside in neighbours]).reshape(-1, table.shape[1])
    wanted = np.asarray([lengths[beside].mean() for beside in neighbours])
    return (vectors * (wanted / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12))[:, None]).astype(np.float32)


def nearest_items(table: np.ndarray, vectors: np.ndarray) -> list[np.ndarray]:
    """For each of vectors [n, D], internal ids of the NEAREST items with the highest cosine; table: [items + 1, D]."""
    def unit(a):
        return a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)

    cosine = unit(vectors) @ unit(table[1:]).T
    return list(1 + np.argsort(-cosine, axis=1, kind='stable')[:, :NEAREST])


def feature_vectors(known: pl.DataFrame, vectors: np.ndarray, new: pl.DataFrame, *, ridge: float = RIDGE) -> np.ndarray:
    """float32 [new items, D], by ridge regression of trained vectors on indicator columns of the items' features.

    known, new: frames of the same feature columns; text is taken apart into its lower-case words, a list into its
    elements, anything else is one category. vectors: float32 [known items, D]. Features that no known item has tell
    nothing; an item without any known feature gets the mean vector. What a regression predicts is shorter than what it
    was fitted to; all vectors are made longer by the same factor, which gives the known items their mean length.
    """
    words = [_words(frame) for frame in (known, new)]
    numbers = {word: n for n, word in enumerate(sorted(set().union(*words[0])))}
    design, wanted = (_indicators(rows, numbers) for rows in words)
    mean = vectors.mean(axis=0)
    gram = design.T @ design + ridge * np.eye(len(numbers))
    map_ = np.linalg.solve(gram, design.T @ (vectors - mean))
    fitted, found = (mean + rows @ map_ for rows in (design, wanted))
    scale = np.linalg.norm(vectors, axis=1).mean() / np.linalg.norm(fitted, axis=1).mean()
    return (scale * found).astype(np.float32)


def stand_beside(dataset: SequenceDataset, items: np.ndarray) -> list[np.ndarray]:
    """For each item the older items (of lower ids than all of `items`) just before and after it in histories; all of
    the older items where it stands beside none."""
    if not len(items):
        return []
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    pairs = []
    for shift in (1, 2):
        same = user[shift:] == user[:-shift]
        left, right = dataset.items[:-shift][same], dataset.items[shift:][same]
        pairs += [(left, right), (right, left)]
    one, other = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    use = (one >= items[0]) & (other < items[0])
    order = np.argsort(one[use], kind='stable')
    groups = np.split(other[use][order], np.searchsorted(one[use][order], items[1:]))
    everything = np.arange(1, items[0])
    return [group if len(group) else everything for group in groups]


def _words(frame: pl.DataFrame) -> list[set[str]]:
    """The features of each row, as 'column=word'."""
    rows: list[set[str]] = [set() for _ in range(len(frame))]
    for column in frame.iter_columns():
        for row, value in zip(rows, column.to_list(), strict=True):
            values = value if isinstance(value, list) else value.lower().split() if isinstance(value, str) else [value]
            row.update(f'{column.name}={v}' for v in values if v is not None)
    return rows


def _indicators(rows: list[set[str]], numbers: dict[str, int]) -> np.ndarray:
    """float64 [rows, features], 1 / sqrt(number of the row's features) where it has a feature."""
    matrix = np.zeros((len(rows), len(numbers)))
    for row, words in zip(matrix, rows, strict=True):
        at = [numbers[word] for word in words if word in numbers]
        row[at] = 1 / np.sqrt(max(len(at), 1))
    return matrix
