"""Items that nobody has trained on: what a caller says of them, and a run that holds them too."""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.arguments import mapped, text
from ssd4rec_jax.data.followers import with_new_items
from ssd4rec_jax.data.ids import canonical, positions
from ssd4rec_jax.data.tables.frames import as_polars
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.model.network import abstract_network
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, shardings
from ssd4rec_jax.rank.new_items import feature_vectors, nearest_items, neighbour_vectors
from ssd4rec_jax.run.saved_run import SavedRun


class AddedItems(NamedTuple):
    """names: original ids. vectors: float32 [items, D]. groups: internal ids of known items that each one is like."""

    names: list[Any]
    vectors: np.ndarray
    groups: list[np.ndarray]


def of_vectors(answers: Answers, vectors: Mapping[Any, Any]) -> AddedItems:
    """From {id: D numbers}; UserError where these are not D finite numbers each."""
    width = answers.table.shape[1]
    given = mapped(vectors, 'vectors', f'new ids and {width} numbers each')
    names = list(given)
    try:
        found = np.asarray([np.asarray(vector, np.float32) for vector in given.values()])
        right = found.shape == (len(names), width) and np.isfinite(found).all()
    except (TypeError, ValueError):
        right = False
    if not right:
        raise UserError(f'vectors must be {width} finite numbers for each item')
    return AddedItems(names, found, nearest_items(answers.table, found))


def of_neighbours(answers: Answers, beside: Mapping[Any, Sequence[Any]]) -> AddedItems:
    """From {id: ids of known items that it occurs beside}; UserError where none is named."""
    neighbours = mapped(beside, 'beside', 'new ids and lists of known ones')
    names = list(neighbours)
    groups = [answers.known(ids, f'beside[{name!r}]') + 1 for name, ids in neighbours.items()]
    if empty := [name for name, group in zip(names, groups, strict=True) if not len(group)]:
        raise UserError(f'beside[{empty[0]!r}] is empty: name an item that it occurs beside')
    return AddedItems(names, neighbour_vectors(answers.table, groups), groups)


def of_features(answers: Answers, features: Any, item: str) -> AddedItems:
    """From a frame with the column `item` and columns of features, of known and of new items."""
    frame = as_polars(features).collect()
    item = text(item, 'item')
    if item not in frame.columns:
        raise UserError(f'features has no column {item!r}; it has {", ".join(frame.columns)}')
    if frame[item].null_count() or frame[item].is_duplicated().any() or frame.width < 2:
        raise UserError(f'features must have each item once in {item!r}, and a column beside it')
    at = positions(answers.saved.dataset.item_ids, [str(i) for i in frame[item].to_list()])
    known, new = frame.filter(pl.Series(at >= 0)), frame.filter(pl.Series(at < 0))
    if not len(known) or not len(new):
        raise UserError(f'features has {len(known)} known and {len(new)} new items; it needs some of both')
    vectors = feature_vectors(known.drop(item), answers.item_vectors[1:][at[at >= 0]], new.drop(item))
    return AddedItems(new[item].to_list(), vectors, nearest_items(answers.table, vectors))


def with_items(saved: SavedRun, added: AddedItems) -> SavedRun:
    """The run with these items at the end of its catalogue; UserError where it has one, or ids of another kind."""
    names, known = added.names, saved.dataset.item_ids
    at = positions(known, [str(name) for name in names])
    if (at >= 0).any():
        raise UserError(f'{names[int(np.argmax(at >= 0))]!r} is in the catalogue already')
    if isinstance(known, TextIds):
        item_ids: TextIds | np.ndarray = TextIds.of([*known.tolist(), *(str(name).strip() for name in names)])
    else:
        ids = canonical(pl.Series([str(name) for name in names]))
        if ids.dtype != pl.Int64 or ids.null_count():
            raise UserError(f'the ids of this log are integers, and {names!r} are not all: give them alike')
        item_ids = np.concatenate([np.asarray(known), ids.to_numpy()])
    network, _ = abstract_network(saved.config.model, len(item_ids), saved.mesh)
    whole = saved.network.whole(saved.params)
    table = np.concatenate([whole[ITEM_EMBEDDING], added.vectors.astype(whole[ITEM_EMBEDDING].dtype)])
    params = network.split({**whole, ITEM_EMBEDDING: table}, saved.mesh)
    return dataclasses.replace(
        saved, dataset=dataclasses.replace(saved.dataset, item_ids=item_ids), network=network,
        params=jax.device_put(params, shardings(params, saved.mesh)),
        item_counts=np.concatenate([saved.item_counts, np.zeros(len(names), np.int64)]),
        followers=saved.followers and with_new_items(saved.followers, added.groups),
    )
