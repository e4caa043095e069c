"""Interactions → SequenceDataset: iterated user and item k-core, vocabularies, histories in time order."""
import numpy as np
import polars as pl

from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.errors import DataError


def build_sequences(log: Interactions, config: DataConfig, *, name: str, fingerprint: str = '') -> SequenceDataset:
    """The prepared form of a raw log, as RecBole prepares it.

    Users and items with fewer than config.min_interactions rows are removed until none is left; the others get ids in
    order of first appearance in the rows that remain; a user's rows are ordered by time, ties in file order.
    DataError if nothing remains.
    """
    users, user_vocabulary = _codes(log.users)
    items, item_vocabulary = _codes(log.items)
    rows = k_core(users, items, config.min_interactions)
    if not len(rows):
        raise DataError(
            f'{log.source}: of {len(log)} rows none is left after the iterated user and item '
            f'{config.min_interactions}-core: give the whole log, or lower data.min_interactions'
        )
    users, kept_users = _by_first_appearance(users[rows])
    items, kept_items = _by_first_appearance(items[rows])
    times = log.times[rows]
    if config.timestamp_precision == 'float32':
        times = times.astype(np.float32)
    order = np.lexsort((times, users))  # stable: equal times stay in file order
    return SequenceDataset(
        name=name,
        items=(items + 1).astype(np.int32)[order],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(users))]),
        user_ids=_id_array(user_vocabulary[kept_users]),
        item_ids=_id_array(item_vocabulary[kept_items]),
        fingerprint=fingerprint,
    )


def k_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Rows (int64, ascending) of the largest part of a log in which each user and each item has at least k rows.

    users, items: [rows] integer codes from 0.
    """
    rows = np.arange(len(users))
    while True:
        often = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if often.all():
            return rows
        rows, users, items = rows[often], users[often], items[often]


def _codes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes from 0, vocabulary) with vocabulary[codes] == ids."""
    if ids.dtype != object:
        vocabulary, codes = np.unique(ids, return_inverse=True)
        return codes, vocabulary
    texts = pl.Series(ids, dtype=pl.String)
    vocabulary = texts.unique(maintain_order=True)
    return texts.cast(pl.Enum(vocabulary)).to_physical().to_numpy(), vocabulary.to_numpy()


def _by_first_appearance(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes renumbered from 0 in order of first appearance, old code of each new one)."""
    first = np.full(codes.max() + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal indices the last assignment, the first row, stays
    old = np.argsort(first)[:np.count_nonzero(first < len(codes))]
    new = np.empty(len(first), np.int64)
    new[old] = np.arange(len(old))
    return new[codes], old


def _id_array(ids: np.ndarray) -> np.ndarray:
    return ids.astype(str) if ids.dtype == object else ids
