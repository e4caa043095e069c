"""Interactions → SequenceDataset: iterated user and item k-core, vocabularies, histories in time order.

Of KuaiRand-27K's 322 million rows no temporary may have 8 bytes a row beside the log's 16 and the times in order: what
gathers or counts does so in blocks.
"""
import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.dataset import Outside, SequenceDataset
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.times import as_stored, in_words
from ssd4rec_jax.data.vocabulary import stored_ids
from ssd4rec_jax.errors import DataError

BLOCK_ROWS = 1 << 22
# Integer ids from 0 to below this or a quarter of the rows are their own codes.
_DENSE_IDS = 1 << 24


def build_sequences(
    log: Interactions, config: DataConfig, *, name: str, fingerprint: str = '', block_rows: int = BLOCK_ROWS
) -> SequenceDataset:
    """The prepared form of a raw log, as RecBole prepares it.

    Users with fewer than config.user_core rows and items with fewer than config.item_core are removed until none is
    left; the others get ids in order of first appearance in the rows that remain; a user's rows are ordered by time,
    ties in file order, and before that by their parts where the log's files say them. DataError if nothing remains.
    block_rows: handled at a time; the result does not depend on it.
    """
    source, rows = log.source, len(log)
    times, time_unit, notes, bad = log.times, log.time_unit, list(log.notes), log.bad_rows
    order_unsure, features, parts = log.order_unsure, log.features, log.parts
    times, epoch = _since(times)
    users, user_vocabulary = _codes(log.users)
    items, item_vocabulary = _codes(log.items)
    del log  # and with it, where the caller keeps none, each column once its successor is there
    all_users, all_items = (int(np.count_nonzero(_counts(codes, block_rows))) for codes in (users, items))
    if order_unsure and all_users < all_items:
        notes.append(
            f'warning: {source} has {all_users:,} users and {all_items:,} items: if the item stands first in its '
            'rows, as in '
            "Amazon's files of 2018, read it with --dataset=interactions --columns=item,user,rating,time"
        )
    core = k_core(users, items, config.user_core, config.item_core, block_rows)
    if not core.kept.any():
        raise DataError(
            f'{source}: of {rows} rows none is left after the iterated {core_name(config)}: '
            f'{core.by_user_rule} were of users and {core.by_item_rule} of items with too few: give the whole log, or '
            'lower '
            'data.min_interactions'
        )
    others = _Others.of(users, items, times, core.kept, block_rows)
    if not core.kept.all():
        users, items, times = users[core.kept], items[core.kept], times[core.kept]
        features = {name: feature.at(core.kept) for name, feature in features.items()}
        parts = None if parts is None else parts[core.kept]
    else:
        users, items = users.copy(), items.copy()  # they are renumbered in place
    kept_users = _number_by_first_appearance(users, block_rows)
    kept_items = _number_by_first_appearance(items, block_rows)
    offsets = np.concatenate([[0], np.cumsum(_counts(users, block_rows))])
    beside = [times, *(feature.values for feature in features.values())]
    histories = _histories(users, items, beside, parts, epoch, offsets, config.timestamp_precision, block_rows)
    del users, items, times, beside
    outside = others and others.outside(user_vocabulary, kept_items, functools.partial(
        _histories, epoch=epoch, precision=config.timestamp_precision, block_rows=block_rows
    ), epoch, time_unit)
    in_order, *values = histories.beside
    stored, unit = _stored_times(in_order, epoch, time_unit)
    return SequenceDataset(
        name=name, items=histories.items, offsets=offsets, fingerprint=fingerprint, times=stored, time_unit=unit,
        parts=histories.parts, outside=outside, features={
            name: dataclasses.replace(feature, values=in_order)
            for (name, feature), in_order in zip(features.items(), values, strict=True)
        },
        user_ids=stored_ids(user_vocabulary[kept_users]), item_ids=stored_ids(item_vocabulary[kept_items]),
        report={
            'rows': rows + len(bad), 'bad_rows': len(bad),
            'bad_kinds': dict(collections.Counter(row.kind for row in bad)),
            'dropped_by_user_rule': core.by_user_rule, 'dropped_by_item_rule': core.by_item_rule,
            'rules': core_name(config), 'all_users': all_users, 'all_items': all_items,
            'first_time': in_words(int(stored.min()), unit), 'last_time': in_words(int(stored.max()), unit),
            'repeats': histories.repeats, 'notes': notes,
        },
    )


def core_name(config: DataConfig) -> str:
    """What the k-core asks of users and items."""
    if config.user_core == config.item_core:
        return f'user and item {config.user_core}-core'
    return f'user {config.user_core}-core and item {config.item_core}-core'


class Core(NamedTuple):
    """kept: bool [rows], the rows of a k-core. by_user_rule, by_item_rule: how many rows each rule removed."""

    kept: np.ndarray
    by_user_rule: int
    by_item_rule: int


def k_core(
    users: np.ndarray, items: np.ndarray, user_k: int, item_k: int, block_rows: int = BLOCK_ROWS
) -> Core:
    """The largest part of a log in which each user has at least user_k rows and each item at least item_k.

    users, items: [rows] integer codes from 0. A row whose user and item both have too few counts for the user's rule.
    """
    kept = np.ones(len(users), bool)
    removed = [0, 0]
    while True:
        often = [_counts(codes, block_rows, kept) >= k for codes, k in ((users, user_k), (items, item_k))]
        before = sum(removed)
        for block in _blocks(len(kept), block_rows):
            for rule, codes in enumerate((users, items)):
                there = np.count_nonzero(kept[block])
                kept[block] &= often[rule][codes[block]]
                removed[rule] += int(there - np.count_nonzero(kept[block]))
        if sum(removed) == before:
            return Core(kept, *removed)


class _Others(NamedTuple):
    """The rows in which users whom the core left out meet items that it kept.

    users, items: codes. times: as `_since` gives them. absent: the codes of such users without such a row.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    absent: np.ndarray

    @classmethod
    def of(
        cls, users: np.ndarray, items: np.ndarray, times: np.ndarray, kept: np.ndarray, block_rows: int
    ) -> '_Others | None':
        """None where the core left out no user."""
        left_out = (_counts(users, block_rows) > 0) & (_counts(users, block_rows, kept) == 0)
        if not left_out.any():
            return None
        stays = _counts(items, block_rows, kept) > 0
        rows = np.concatenate([
            block.start + np.flatnonzero(left_out[users[block]] & stays[items[block]])
            for block in _blocks(len(users), block_rows)
        ])
        left_out[users[rows]] = False
        return cls(users[rows], items[rows], times[rows], np.flatnonzero(left_out))

    def outside(
        self, vocabulary: np.ndarray, kept_items: np.ndarray, histories: Callable[..., '_Histories'], epoch: np.int64,
        time_unit: str,
    ) -> Outside:
        """Their histories in time order. kept_items: the code of each internal item."""
        seen, users = np.unique(self.users, return_inverse=True)
        codes = np.concatenate([seen, self.absent])
        number = np.zeros(kept_items.max() + 1, np.int64)
        number[kept_items] = np.arange(len(kept_items))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(codes)))])
        found = histories(users, number[self.items], [self.times], None, offsets=offsets)
        times, _ = _stored_times(found.beside[0], epoch, time_unit)
        return Outside(found.items, offsets, stored_ids(vocabulary[codes]), times)


def _stored_times(times: np.ndarray, epoch: np.int64, unit: str) -> tuple[np.ndarray, str]:
    """The times that `_since` made smaller, as a prepared data set stores them, and their unit."""
    return as_stored(times + epoch if times.dtype == np.uint32 else times, unit)


def _codes(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes from 0, vocabulary) with vocabulary[codes] == ids; not every code need occur."""
    if ids.dtype != object:
        top = ids.max(initial=0)
        if ids.min(initial=0) >= 0 and top < max(_DENSE_IDS, len(ids) // 4):
            return ids, np.arange(top + 1, dtype=np.int64)
        vocabulary, codes = np.unique(ids, return_inverse=True)
        return codes, vocabulary.astype(np.int64)
    texts = pl.Series(ids, dtype=pl.String)
    known = texts.unique(maintain_order=True)
    return texts.cast(pl.Enum(known)).to_physical().to_numpy(), known.to_numpy()


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


def _since(times: np.ndarray) -> tuple[np.ndarray, np.int64]:
    """(times as uint32 since the first one where they all fit, that first one; else as they are, 0)."""
    if times.dtype != np.int64 or int(times.max(initial=0)) - int(times.min(initial=0)) >= 2**32:
        return times, np.int64(0)
    epoch = times.min(initial=np.iinfo(np.int64).max)
    since = np.empty(len(times), np.uint32)
    np.subtract(times, epoch, out=since, casting='unsafe')
    return since, epoch


class _Histories(NamedTuple):
    """items: int32 [rows], counted from 1, users one after another, each in time order, ties in file order.

    beside: arrays [rows] that were given beside the items, in the same order. repeats: rows whose user had the same
      item before.
    """

    items: np.ndarray
    beside: list[np.ndarray]
    repeats: int
    parts: np.ndarray | None


def _histories(
    users: np.ndarray, items: np.ndarray, beside: list[np.ndarray], parts: np.ndarray | None, epoch: np.int64,
    offsets: np.ndarray, precision: str, block_rows: int,
) -> _Histories:
    """beside: the times, which decide the order within a part, and any other arrays with a value a row."""
    if parts is not None:
        beside = [*beside, parts]
    histories, in_order = np.empty(len(items), np.int32), [np.empty_like(array) for array in beside]
    repeats = first = 0
    while first < len(offsets) - 1:  # the next users who have at most block_rows rows, or one who has more
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + block_rows, side='right')) - 1)
        rows = np.flatnonzero((users >= first) & (users < last))
        repeats += _repeats(users[rows], items[rows])
        keys = beside[0][rows]
        if precision == 'float32':
            keys = (keys + epoch).astype(np.float32)
        within = [keys] if parts is None else [keys, parts[rows]]
        order = rows[np.lexsort((*within, users[rows]))]  # stable: equal times stay in file order
        histories[offsets[first]:offsets[last]] = items[order] + 1
        for ordered, array in zip(in_order, beside, strict=True):
            ordered[offsets[first]:offsets[last]] = array[order]
        first = last
    return _Histories(histories, in_order, repeats, None if parts is None else in_order.pop())


def _repeats(users: np.ndarray, items: np.ndarray) -> int:
    """How many rows have a user and an item that stand together in an earlier row."""
    pairs = users.astype(np.int64)
    pairs <<= 32
    pairs |= items
    pairs.sort()
    return int(np.count_nonzero(pairs[1:] == pairs[:-1]))


def _counts(codes: np.ndarray, block_rows: int, kept: np.ndarray | None = None) -> np.ndarray:
    """int64 [codes], how many rows (of those kept) have each code."""
    counts = np.zeros(codes.max(initial=0) + 1, np.int64)
    for block in _blocks(len(codes), block_rows):
        some = codes[block] if kept is None else codes[block][kept[block]]
        counts += np.bincount(some, minlength=len(counts))
    return counts


def _blocks(rows: int, block_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + block_rows, rows)) for start in range(0, rows, block_rows))
