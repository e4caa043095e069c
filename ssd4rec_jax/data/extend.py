"""A prepared log with more rows of the same log: new users and items are appended, nothing gets another number."""
import dataclasses
import hashlib

import numpy as np
import polars as pl

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.features import followed_by
from ssd4rec_jax.data.ids import positions
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.times import as_stored
from ssd4rec_jax.data.vocabulary import TextIds, stored_ids
from ssd4rec_jax.errors import DataError


def extended(dataset: SequenceDataset, more: Interactions) -> SequenceDataset:
    """The data set with the rows of `more`: histories in time order, a row of equal time after the ones that were
    there.

    Ids of users and items that are new follow the ones that are there, in order of first appearance; none is left out
    for being rare. DataError where ids or times are of another kind than the log's.
    """
    users, user_ids = _numbered(dataset.user_ids, more.users, f'{more.source}: user')
    items, item_ids = _numbered(dataset.item_ids, more.items, f'{more.source}: item')
    times, unit = as_stored(more.times, more.time_unit)
    there = np.zeros(dataset.num_interactions, np.int64) if dataset.times is None else np.asarray(dataset.times)
    if unit != dataset.time_unit or dataset.times is None:
        if unit or dataset.time_unit:
            raise DataError(
                f'{more.source}: times are in {unit or "no unit"} and those of the log in '
                f'{dataset.time_unit or "no unit"}: give them alike'
            )
        # Both tell the order alone: what comes later is later.
        there, times = np.arange(dataset.num_interactions), dataset.num_interactions + np.arange(len(more))
    all_users = np.concatenate([np.repeat(np.arange(dataset.num_users), dataset.lengths), users])
    all_times = np.concatenate([there, times])
    order = np.lexsort((all_times, all_users))  # stable: old rows come before new ones of the same time
    if lacking := [name for name in dataset.features if name not in more.features]:
        raise DataError(
            f'{more.source}: has no feature {lacking[0]}, which the log has: read it with the same --features'
        )
    features = {
        name: followed_by(feature, more.features[name], name).at(order) for name, feature in dataset.features.items()
    }
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for array in (users, items, times, *(feature.values for feature in features.values())):
        digest.update(np.ascontiguousarray(array).tobytes())
    return dataclasses.replace(
        dataset, items=np.concatenate([dataset.items, items + 1])[order].astype(np.int32), times=all_times[order],
        offsets=np.concatenate([[0], np.cumsum(np.bincount(all_users, minlength=len(user_ids)))]),
        user_ids=user_ids, item_ids=item_ids, fingerprint=digest.hexdigest(), split=None,
        features=features, parts=None, typical_gap=dataset.measured_gaps().typical,
    )


def _numbered(vocabulary: np.ndarray | TextIds, ids: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray | TextIds]:
    """(position of each id int64, the vocabulary with the new ids behind the old ones)."""
    is_text = isinstance(vocabulary, TextIds)
    if not is_text and ids.dtype == object:
        raise DataError(f'{what} ids are text such as {ids[0]!r}, and those of the log are integers: give them alike')
    texts = pl.Series([str(i) for i in ids.tolist()], dtype=pl.String)
    distinct = texts.unique(maintain_order=True)
    at = positions(vocabulary, distinct.to_list()).copy()
    is_new = at < 0
    at[is_new] = len(vocabulary) + np.arange(int(is_new.sum()))
    new = distinct.filter(pl.Series(is_new)).to_list()
    if is_text:
        assert isinstance(vocabulary, TextIds)
        known: np.ndarray | TextIds = TextIds.of([*vocabulary.tolist(), *new])
    else:
        known = np.concatenate([np.asarray(stored_ids(vocabulary)), np.asarray(new, np.int64)])
    table = pl.DataFrame({'id': distinct, 'at': at})
    found = pl.DataFrame({'id': texts}).join(table, on='id', how='left', maintain_order='left')['at']
    return found.to_numpy().astype(np.int64), known
