"""Interactions → SequenceDataset: iterated user and item k-core, vocabularies, histories in time order.

Of KuaiRand-27K's 322 million rows no temporary may have 8 bytes a row beside the log's 16: what gathers or counts does so
in blocks.
"""
from collections.abc import Iterator

import numpy as np
import polars as pl

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.errors import DataError

BLOCK_ROWS = 1 << 22
# Integer ids from 0 to below this or a quarter of the rows are their own codes.
_DENSE_IDS = 1 << 24


def build_sequences(
    log: Interactions, config: DataConfig, *, name: str, fingerprint: str = '', block_rows: int = BLOCK_ROWS
) -> SequenceDataset:
    """The prepared form of a raw log, as RecBole prepares it.

    Users and items with fewer than config.min_interactions rows are removed until none is left; the others get ids in
    order of first appearance in the rows that remain; a user's rows are ordered by time, ties in file order.
    DataError if nothing remains. block_rows: handled at a time; the result does not depend on it.
    """
    source, rows, times = log.source, len(log), log.times
    users, user_vocabulary = _codes(log.users)
    items, item_vocabulary = _codes(log.items)
    del log  # and with it, where the caller keeps none, each column once its successor is there
    kept = k_core(users, items, config.min_interactions, block_rows)
    if not kept.any():
        raise DataError(
            f'{source}: of {rows} rows none is left after the iterated user and item '
            f'{config.min_interactions}-core: give the whole log, or lower data.min_interactions'
        )
    users = users[kept]
    items = items[kept]
    times = times[kept]
    kept_users = _number_by_first_appearance(users, block_rows)
    kept_items = _number_by_first_appearance(items, block_rows)
    offsets = np.concatenate([[0], np.cumsum(_counts(users, block_rows))])
    return SequenceDataset(
        name=name,
        items=_histories(users, items, times, offsets, config.timestamp_precision, block_rows),
        offsets=offsets,
        user_ids=_id_array(user_vocabulary[kept_users]),
        item_ids=_id_array(item_vocabulary[kept_items]),
        fingerprint=fingerprint,
    )


def k_core(users: np.ndarray, items: np.ndarray, k: int, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """bool [rows]: the largest part of a log in which each user and each item has at least k rows.

    users, items: [rows] integer codes from 0.
    """
    kept = np.ones(len(users), bool)
    while True:
        often = [_counts(codes, block_rows, kept) >= k for codes in (users, items)]
        before = np.count_nonzero(kept)
        for block in _blocks(len(kept), block_rows):
            kept[block] &= often[0][users[block]] & often[1][items[block]]
        if np.count_nonzero(kept) == before:
            return kept


def _codes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes from 0, vocabulary) with vocabulary[codes] == ids; not every code need occur."""
    if ids.dtype != object:
        top = ids.max(initial=0)
        if ids.min(initial=0) >= 0 and top < max(_DENSE_IDS, len(ids) // 4):
            return ids, np.arange(top + 1, dtype=np.int64)
        vocabulary, codes = np.unique(ids, return_inverse=True)
        return codes, vocabulary.astype(np.int64)
    texts = pl.Series(ids, dtype=pl.String)
    vocabulary = texts.unique(maintain_order=True)
    return texts.cast(pl.Enum(vocabulary)).to_physical().to_numpy(), vocabulary.to_numpy()


def _number_by_first_appearance(codes: np.ndarray, block_rows: int) -> np.ndarray:
    """Renumber codes, in place, from 0 in order of first appearance; the old code of each new one."""
    blocks = list(_blocks(len(codes), block_rows))
    first = np.full(codes.max() + 1, len(codes))
    for block in reversed(blocks):
        # Of equal indices the last assignment, the first row, stays.
        first[codes[block][::-1]] = np.arange(block.start, block.stop)[::-1]
    old = np.argsort(first)[:np.count_nonzero(first < len(codes))]
    new = np.empty(len(first), codes.dtype)
    new[old] = np.arange(len(old))
    for block in blocks:
        codes[block] = new[codes[block]]
    return old


def _histories(users, items, times, offsets, precision: str, block_rows: int) -> np.ndarray:
    """int32 [rows], items counted from 1: users one after another, each in time order, ties in file order."""
    histories = np.empty(len(items), np.int32)
    first = 0
    while first < len(offsets) - 1:  # the next users who have at most block_rows rows, or one who has more
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + block_rows, side='right')) - 1)
        rows = np.flatnonzero((users >= first) & (users < last))
        keys = times[rows].astype(np.float32) if precision == 'float32' else times[rows]
        order = rows[np.lexsort((keys, users[rows]))]  # stable: equal times stay in file order
        histories[offsets[first]:offsets[last]] = items[order] + 1
        first = last
    return histories


def _counts(codes: np.ndarray, block_rows: int, kept: np.ndarray | None = None) -> np.ndarray:
    """int64 [codes], how many rows (of those kept) have each code."""
    counts = np.zeros(codes.max(initial=0) + 1, np.int64)
    for block in _blocks(len(codes), block_rows):
        some = codes[block] if kept is None else codes[block][kept[block]]
        counts += np.bincount(some, minlength=len(counts))
    return counts


def _blocks(rows: int, block_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + block_rows, rows)) for start in range(0, rows, block_rows))


def _id_array(ids: np.ndarray) -> np.ndarray:
    return ids.astype(str) if ids.dtype == object else ids
