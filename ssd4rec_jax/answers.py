"""Answers of a saved run in original ids."""
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl

from ssd4rec_jax.arguments import listed, truth, whole
from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.data.dataset import Outside, SequenceDataset, with_features
from ssd4rec_jax.data.features import Feature
from ssd4rec_jax.data.ids import IdIndex
from ssd4rec_jax.errors import UnknownIds, UserError
from ssd4rec_jax.model.networks import item_vectors
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.saved_run import SavedRun

AT_ONCE = 8192  # histories that are scored before their rows are handed on


class Answers:
    """What a saved run says to users and histories that are given in original ids; polars frames and NumPy arrays."""

    def __init__(self, saved: SavedRun):
        self.saved = saved

    def best(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *,
        k: int = 10, exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Frames user, rank, item, score, reason of AT_ONCE users or histories at most (see Recommender.recommend)."""
        k, exclude_seen = self.cut_to_catalogue(k), truth(exclude_seen, 'exclude_seen')
        names, read, features = self._asked(users, histories)
        allowed = self.allowed(exclude, only)
        for start in range(0, max(len(names), 1), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield self._ranked(
                names[part], read[part], k, exclude_seen, allowed,
                {name: each[part] for name, each in features.items()},
            )

    def cut_to_catalogue(self, k: int) -> int:
        """How many items can be asked for, with a warning where that is less than k."""
        k, catalogue = whole(k, 'k'), self.saved.dataset.num_items
        if k > catalogue:
            warnings.warn(f'k={k} is beyond the catalogue of {catalogue} items: cut to it', stacklevel=3)
        return min(k, catalogue)

    def vectors(self, histories: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [histories, D], the readouts of TopItems.vectors; NaN without known items."""
        return self._of_known(histories, self.table.shape[1], self.top.vectors)

    def scores(self, histories: Sequence[Sequence[Any]], items: Sequence[Any]) -> np.ndarray:
        """float32 [histories, items]; NaN without known items."""
        distinct, back = np.unique(self.known(items, 'items') + 1, return_inverse=True)
        found = self._of_known(histories, len(distinct), lambda read: self.top.scores(read, distinct))
        return found[:, back]

    def _of_known(
        self, histories: Sequence[Sequence[Any]], width: int, of: Callable[[list[np.ndarray]], np.ndarray]
    ) -> np.ndarray:
        """float32 [histories, width]: of(histories of internal ids) where any item is known, NaN elsewhere."""
        _, read, _ = self._asked(None, histories)
        found = np.full((len(read), width), np.nan, np.float32)
        some = [n for n, history in enumerate(read) if len(history)]
        if some:
            found[some] = of([read[n] for n in some])
        return found

    def similar(self, item: Any, k: int) -> pl.DataFrame:
        """The k items whose vectors have the highest cosine with an item's: rank, item, cosine."""
        k = whole(k, 'k')
        (at,) = self.known([item], 'item')
        vectors = self.table[1:] / np.maximum(np.linalg.norm(self.table[1:], axis=1, keepdims=True), 1e-30)
        cosine = vectors @ vectors[at]
        cosine[at] = -np.inf
        best = np.argsort(-cosine, kind='stable')[:min(k, len(cosine) - 1)]
        return pl.DataFrame({
            'rank': np.arange(1, len(best) + 1), 'item': self.item_ids.gather(best), 'cosine': cosine[best],
        })

    @functools.cached_property
    def top(self) -> TopItems:
        """What scores histories of internal ids."""
        saved = self.saved
        return TopItems(
            saved.network, saved.mesh, saved.params, max_history=saved.config.data.max_history,
            followers=saved.followers,
        )

    @functools.cached_property
    def dataset(self) -> SequenceDataset:
        """The data with what the network reads of each interaction."""
        return with_features(self.saved.dataset, features_read(self.saved.config.model))

    @functools.cached_property
    def table(self) -> np.ndarray:
        """float32 [items + 1, D], row 0 for the mask."""
        return np.asarray(self.saved.network.whole(self.saved.params)[ITEM_EMBEDDING], np.float32)

    @functools.cached_property
    def item_vectors(self) -> np.ndarray:
        """float32 [items + 1, D], whose dot products with `vectors` are the scores."""
        network = self.saved.network.bind(self.saved.params)
        return np.asarray(item_vectors(network, jnp.asarray(self.table)), np.float32)

    @functools.cached_property
    def item_ids(self) -> pl.Series:
        return _series(self.saved.dataset.item_ids)

    @functools.cached_property
    def _user_ids(self) -> pl.Series:
        dataset = self.saved.dataset
        known = _series(dataset.user_ids)
        return known if dataset.outside is None else pl.concat([known, _series(dataset.outside.user_ids)])

    @property
    def num_users(self) -> int:
        """Users who can be asked for by id: those of the log, and those whom its core left out."""
        outside = self.saved.dataset.outside
        return self.saved.dataset.num_users + (0 if outside is None else len(outside.user_ids))

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        return np.asarray(self.saved.item_counts)

    def _asked(
        self, users: Sequence[Any] | str | None, histories: Sequence[Sequence[Any]] | None
    ) -> tuple[pl.Series, list[np.ndarray], dict[str, list[np.ndarray]]]:
        """(names, internal item ids, {feature: values}) of the histories asked for; users alone have features."""
        if (users is None) == (histories is None):
            raise UserError('give either users (ids of the log, or \'all\') or histories (lists of item ids)')
        if histories is not None:
            read = self._read_histories(histories)
            return pl.Series('user', range(len(read)), pl.Int64), read, {}
        assert users is not None
        return self.of_users(self.users_at(users))

    def of_users(self, at: np.ndarray) -> tuple[pl.Series, list[np.ndarray], dict[str, list[np.ndarray]]]:
        """(names, internal item ids, {feature: values}) of the users at some positions."""
        return self._user_ids.gather(at).alias('user'), [self._history(u) for u in at.tolist()], {
            name: [self._feature(name, u) for u in at.tolist()] for name in self.dataset.values_read
        }

    def users_at(self, users: Sequence[Any] | str) -> np.ndarray:
        """int64, the positions of users of the log, or of 'all', without those that it does not have."""
        if not self.dataset.num_users:
            raise UserError(
                'this model was saved without histories: give histories of items instead of users (in Python '
                'histories=[[item, ...], ...], on the command line --history or --histories)'
            )
        if isinstance(users, str) and users == 'all':
            return np.arange(self.num_users)
        at = self._found(self._users_at, listed(users, 'users'), 'users')
        return at[at >= 0]

    def _users_at(self, wanted: list[str]) -> np.ndarray:
        """Position of each user id among those of the log and then those whom its core left out, else -1."""
        known, *others = self._user_indices
        at = known.positions(wanted)
        for index in others:
            outside = index.positions(wanted)
            at = np.where((at < 0) & (outside >= 0), self.saved.dataset.num_users + outside, at)
        return at

    @functools.cached_property
    def _user_indices(self) -> list[IdIndex]:
        """Of the users of the log, and of those whom its core left out where there are any."""
        dataset = self.saved.dataset
        outside = [] if dataset.outside is None else [IdIndex(dataset.outside.user_ids)]
        return [IdIndex(dataset.user_ids), *outside]

    @functools.cached_property
    def _item_index(self) -> IdIndex:
        return IdIndex(self.saved.dataset.item_ids)

    def _history(self, user: int) -> np.ndarray:
        """Internal item ids of the user at a position."""
        held: SequenceDataset | Outside | None = self.saved.dataset
        if user >= self.saved.dataset.num_users:
            held, user = self.saved.dataset.outside, user - self.saved.dataset.num_users
        assert held is not None
        return held.items[held.offsets[user]:held.offsets[user + 1]]

    def _feature(self, name: str, user: int) -> np.ndarray:
        """float32, what the network reads of each of a user's events; missing for users whom the core left out."""
        dataset = self.dataset
        values = dataset.values_read[name]
        if user < dataset.num_users:
            return values.numbers(np.arange(dataset.offsets[user], dataset.offsets[user + 1]))
        is_number = isinstance(values, Feature) and values.categories is None
        return np.full(len(self._history(user)), np.nan if is_number else 0, np.float32)

    def _read_histories(self, histories: Sequence[Sequence[Any]]) -> list[np.ndarray]:
        return [read[read > 0] for read in self.read_items(histories, 'histories')]

    def read_items(self, histories: Sequence[Sequence[Any]], what: str) -> list[np.ndarray]:
        """Internal ids int32 [n] of lists of items; 0, with one warning for all, where the log does not have one."""
        lists = [listed(history, 'a history') for history in listed(histories, what)]
        flat = self._found(self._items_at, [item for history in lists for item in history], what)
        ends = np.cumsum([len(history) for history in lists], dtype=np.int64)
        return [part.astype(np.int32) + 1 for part in np.split(flat, ends[:-1])] if lists else []

    def _items_at(self, wanted: list[str]) -> np.ndarray:
        return self._item_index.positions(wanted)

    def _found(self, at_of: Callable[[list[str]], np.ndarray], wanted: list[Any], argument: str) -> np.ndarray:
        """Position of each id of an argument, -1 with one warning where the log does not have it."""
        at = at_of([str(id_) for id_ in wanted])
        missing = np.flatnonzero(at < 0)
        if len(missing):
            warnings.warn(UnknownIds(argument, len(missing), len(wanted), wanted[missing[0]]), stacklevel=4)
        return at

    def known(self, items: Iterable[Any], what: str) -> np.ndarray:
        """Positions of items that must be in the log."""
        wanted = listed(items, what)
        at = self._items_at([str(id_) for id_ in wanted])
        if (at < 0).any():
            like = ', '.join(map(str, self.item_ids.head(3).to_list()))
            raise UserError(f'{what}: {wanted[int(np.argmin(at))]!r} is not in the log (ids look like {like})')
        return at

    def allowed(self, exclude: Iterable[Any], only: Iterable[Any] | None) -> np.ndarray | None:
        """bool [items + 1] of the items that may be recommended; None where all may."""
        left_out, chosen = listed(exclude, 'exclude'), None if only is None else listed(only, 'only')
        if not left_out and chosen is None:
            return None
        allowed = np.full(self.saved.dataset.num_items + 1, chosen is None)
        if chosen is not None:
            allowed[(at := self._found(self._items_at, chosen, 'only'))[at >= 0] + 1] = True
        allowed[(at := self._found(self._items_at, left_out, 'exclude'))[at >= 0] + 1] = False
        return allowed

    def _ranked(
        self, names: pl.Series, read: list[np.ndarray], k: int, exclude_seen: bool, allowed: np.ndarray | None,
        features: dict[str, list[np.ndarray]],
    ) -> pl.DataFrame:
        some = np.asarray([len(history) > 0 for history in read], bool)
        known = [history for history in read if len(history)]
        found = self.top(
            known, k=k, exclude=known if exclude_seen else None, allowed=allowed, features=features
        ) if known else None
        return self.framed(names, some, k, found, allowed)

    def framed(
        self, names: pl.Series, some: np.ndarray, k: int, found: tuple[np.ndarray, np.ndarray] | None,
        allowed: np.ndarray | None,
    ) -> pl.DataFrame:
        """A frame of `best`. some: bool [names], whose history holds a known item; the others get what is popular.

        found: the k best items and their scores of those, as TopItems gives them; None where there are none.
        """
        items, scores = np.zeros((len(names), k), np.int32), np.full((len(names), k), -np.inf, np.float32)
        if found is not None:
            items[some], scores[some] = found
        if not some.all():
            counts = np.where(allowed, self._counts, -np.inf) if allowed is not None else self._counts.astype(float)
            counts[0] = -np.inf
            order = np.argsort(-counts, kind='stable')[:k]
            items[~some], scores[~some] = order, counts[order]
        rows, places = np.nonzero(np.isfinite(scores))
        return pl.DataFrame({
            'user': names.gather(rows), 'rank': places + 1, 'item': self.item_ids.gather(items[rows, places] - 1),
            'score': scores[rows, places], 'reason': np.where(some, 'model', 'popularity')[rows],
        })


def _series(ids: Any) -> pl.Series:
    return pl.Series(ids) if isinstance(ids, np.ndarray) else ids.series()
