"""A recommender to hold: fit on a table, load from a folder, ask for items by original ids."""
import dataclasses
import functools
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.ids import positions
from ssd4rec_jax.data.prepare import fingerprint, prepare
from ssd4rec_jax.data.sources import FileSource, FrameSource, find_source
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.frames import in_library, library_of
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.presets.auto import auto_config
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import SavedRun, load_run
from ssd4rec_jax.train.launch import Launch, launch
from ssd4rec_jax.train.stop_signals import StopSignals

AT_ONCE = 8192  # histories that are scored before their rows are handed on


class Recommender:
    """Sequential recommendations by a trained network, in original ids.

    >>> import polars as pl
    >>> from ssd4rec_jax import Recommender
    >>> log = pl.DataFrame({
    ...     'user': [f'u{u}' for u in range(30) for _ in range(8)],
    ...     'item': [f'i{(u + t) % 10}' for u in range(30) for t in range(8)],
    ...     'time': [t for u in range(30) for t in range(8)],
    ... })
    >>> rec = Recommender(settings={'model.hidden_size': 16, 'train.max_epochs': 2}).fit(log)
    >>> rec.recommend(users=['u1', 'u2'], k=3).columns
    ['user', 'rank', 'item', 'score', 'reason']

    preset: 'auto', which sizes the network for the log and this machine, 'published', or the name of a data set.
    settings: dotted settings that override the preset's, {'model.num_layers': 1}. config: a whole RunConfig instead.
    """

    def __init__(
        self, preset: str = 'auto', *, settings: Mapping[str, Any] | None = None, config: RunConfig | None = None
    ):
        self.preset, self.settings, self.config = preset, dict(settings or {}), config
        self._run: SavedRun | None = None
        self._library = 'polars'

    # ---- fitting

    def fit(
        self, data: Any, *, user: str | None = None, item: str | None = None, time: str | None = None,
        workdir: str | Path | None = None, reporter: Reporter | None = None,
    ) -> 'Recommender':
        """Train on a log, or go on where an earlier call stopped in the same workdir; returns self.

        data: a frame of polars or pandas, a pyarrow table, or the path of a log in any form that `ssd4rec train` reads.
        user, item, time: names of the columns; found by their usual names where they are not given, time='none' takes the
        order of the rows. workdir: the folder of the run; a temporary one where it is not given. Ctrl-C stops after the
        step that runs, with what has been learnt so far. UserError says what is wrong with the log or the settings.
        """
        self._library = library_of(data)
        options = TableOptions(user=user, item=item, time=time)
        if isinstance(data, (str, Path)):
            source: FileSource | FrameSource | SyntheticSource = find_source('interactions', data, options=options)
        elif len(data):
            source = FrameSource(data, options)
        else:
            raise UserError('the frame holds no rows: give the whole log')
        folder = Path(workdir or tempfile.mkdtemp(prefix='ssd4rec-')).absolute()
        config, dataset, prepared, why = self._configured(source, folder)
        (reporter := reporter or Reporter()).note(why)
        enable_compilation_cache()
        signals: list[StopSignals] = []

        def watch_for_stop() -> Callable[[], bool]:
            if threading.current_thread() is not threading.main_thread():
                return lambda: False  # only the main thread hears of signals
            signals.append(StopSignals())
            return signals[0].requested

        try:
            launch(
                config, folder, lambda: (dataset, prepared), Launch(), log_is_named=True, reporter=reporter,
                watch_for_stop=watch_for_stop,
            )
        finally:
            for stop in signals:
                stop.release()
        self._take(load_run(folder))
        return self

    def _configured(
        self, source: FileSource | FrameSource | SyntheticSource, folder: Path
    ) -> tuple[RunConfig, SequenceDataset, Path, str]:
        """(config, prepared data, its folder, a sentence about the choice)."""
        overrides = [f'{key}={value}' for key, value in self.settings.items()]

        def prepared_with(config: RunConfig) -> tuple[SequenceDataset, Path]:
            return prepare(source, config.data, folder / 'data' / f'prepared-{fingerprint(source, config.data)[:12]}')

        if self.config is not None:
            config, why = apply_overrides(self.config, overrides), 'settings: those given'
        elif self.preset == 'auto':
            # How a log is prepared does not depend on its size, but all else does.
            own = [override for override in overrides if override.startswith('data.')]
            dataset, _ = prepared_with(apply_overrides(default_config('interactions'), own))
            config, why = auto_config(dataset, platform=jax.default_backend())
            config = apply_overrides(config, overrides)
        else:
            name = 'interactions' if self.preset == 'published' else self.preset
            config = dataclasses.replace(apply_overrides(default_config(name), overrides), dataset='interactions')
            why = f'settings: the preset {self.preset}'
        return config, *prepared_with(config), why

    # ---- asking

    def recommend(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *, k: int = 10,
        exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
    ) -> Any:
        """The k best next items of each user or history: a frame with the columns user, rank, item, score, reason.

        users: original ids of users of the log, or 'all'. histories: lists of original item ids in time order, numbered
        from 0 in the column `user`. Users and items that the log does not have are left out with a warning. exclude_seen:
        leave out what a history holds, all of it. exclude: items to leave out for everyone; only: items to choose from.
        reason is 'model', or 'popularity' where a history holds no known item. Scores are dot products; those of
        popularity are counts. A row is missing where fewer than k items are left.
        """
        frames = list(self.recommend_in_parts(
            users, histories, k=k, exclude_seen=exclude_seen, exclude=exclude, only=only
        ))
        return in_library(pl.concat(frames), self._library)

    def recommend_in_parts(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *, k: int = 10,
        exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
    ) -> Iterable[pl.DataFrame]:
        """`recommend` as polars frames of AT_ONCE users or histories at most, each made when it is asked for."""
        names, read = self._asked(users, histories)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise UserError(f'k={k!r} must be a whole number from 1')
        catalogue = self._saved.dataset.num_items
        if k > catalogue:
            warnings.warn(f'k={k} is beyond the catalogue of {catalogue} items: cut to it', stacklevel=2)
        allowed = self._allowed(exclude, only)
        for start in range(0, max(len(names), 1), AT_ONCE):
            yield self._ranked(names[start:start + AT_ONCE], read[start:start + AT_ONCE], min(k, catalogue), exclude_seen, allowed)

    def score(self, histories: Sequence[Sequence[Any]], items: Sequence[Any]) -> np.ndarray:
        """float32 [histories, items]: the score of each item as the next one; NaN for a history without known items."""
        at = self._known(items, 'items') + 1
        return self.user_vectors(histories) @ self._table[at].T

    def user_vectors(self, histories: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [histories, D], whose dot products with `item_vectors` are the scores; NaN without known items."""
        _, read = self._asked(None, histories)
        vectors = np.full((len(read), self._table.shape[1]), np.nan, np.float32)
        some = [n for n, history in enumerate(read) if len(history)]
        if some:
            vectors[some] = self._top.vectors([read[n] for n in some])
        return vectors

    @property
    def items(self) -> list[Any]:
        """Original ids of the catalogue, in the order of `item_vectors`."""
        return self._item_ids.to_list()

    @property
    def item_vectors(self) -> np.ndarray:
        """float32 [items, D]."""
        return self._table[1:]

    def similar_items(self, item: Any, k: int = 10) -> Any:
        """The k items whose vectors have the highest cosine with an item's: a frame with the columns rank, item, cosine."""
        (at,) = self._known([item], 'item')
        vectors = self.item_vectors / np.maximum(np.linalg.norm(self.item_vectors, axis=1, keepdims=True), 1e-30)
        cosine = vectors @ vectors[at]
        cosine[at] = -np.inf
        best = np.argsort(-cosine, kind='stable')[:min(k, len(cosine) - 1)]
        frame = pl.DataFrame({
            'rank': np.arange(1, len(best) + 1), 'item': self._item_ids.gather(best), 'cosine': cosine[best],
        })
        return in_library(frame, self._library)

    # ---- folders

    def save(self, path: str | Path, *, histories: bool = True) -> None:
        """Write a folder with all that `load` needs, to be copied anywhere; histories=False leaves out who did what."""
        saved = self._saved
        save_model(
            Path(path), saved.config, saved.dataset, saved.network.whole(saved.params), step=saved.step,
            best_epoch=saved.best_epoch, histories=histories,
        )

    @classmethod
    def load(cls, path: str | Path, *, model_shards: int = 1) -> 'Recommender':
        """The recommender in a saved folder or in the workdir of a training run, finished or still training.

        model_shards: devices that share the item table; the run may have been trained on any number of them.
        """
        saved = load_run(path, model_shards=model_shards)
        recommender = cls(config=saved.config)
        recommender._take(saved)
        return recommender

    # ---- within

    def _take(self, saved: SavedRun) -> None:
        """Answer with a run from now on."""
        self._run = saved
        for name in ('_top', '_table', '_item_ids', '_user_ids', '_counts'):
            self.__dict__.pop(name, None)

    @property
    def _saved(self) -> SavedRun:
        if self._run is None:
            raise UserError('this Recommender is not fitted yet: call fit(frame) first, or Recommender.load(folder)')
        return self._run

    @functools.cached_property
    def _top(self) -> TopItems:
        saved = self._saved
        return TopItems(saved.network, saved.mesh, saved.params, max_history=saved.config.data.max_history)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """float32 [items + 1, D], row 0 for the mask."""
        return np.asarray(self._saved.network.whole(self._saved.params)[ITEM_EMBEDDING], np.float32)

    @functools.cached_property
    def _item_ids(self) -> pl.Series:
        return _series(self._saved.dataset.item_ids)

    @functools.cached_property
    def _user_ids(self) -> pl.Series:
        return _series(self._saved.dataset.user_ids)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        return np.asarray(self._saved.item_counts)

    def _asked(
        self, users: Sequence[Any] | str | None, histories: Sequence[Sequence[Any]] | None
    ) -> tuple[pl.Series, list[np.ndarray]]:
        """(name, internal item ids) of each history that is asked for."""
        if (users is None) == (histories is None):
            raise UserError('give either users (ids of the log, or \'all\') or histories (lists of item ids)')
        if histories is not None:
            return pl.Series('user', range(len(histories)), pl.Int64), self._read_histories(histories)
        dataset = self._saved.dataset
        if not dataset.num_users:
            raise UserError('this model was saved without histories: give histories=[[item, ...], ...] instead of users')
        if isinstance(users, str) and users == 'all':
            at = np.arange(dataset.num_users)
        else:
            at = self._found(dataset.user_ids, _listed(users, 'users'), 'user')
            at = at[at >= 0]
        offsets = dataset.offsets
        return self._user_ids.gather(at).alias('user'), [dataset.items[offsets[u]:offsets[u + 1]] for u in at.tolist()]

    def _read_histories(self, histories: Sequence[Sequence[Any]]) -> list[np.ndarray]:
        lists = [_listed(history, 'a history') for history in _listed(histories, 'histories')]
        flat = self._found(self._saved.dataset.item_ids, [item for history in lists for item in history], 'item')
        ends = np.cumsum([len(history) for history in lists], dtype=np.int64)
        return [part[part >= 0].astype(np.int32) + 1 for part in np.split(flat, ends[:-1])] if lists else []

    def _found(self, vocabulary: Any, wanted: list[Any], what: str) -> np.ndarray:
        """Position of each id in a vocabulary, -1 with one warning where the log does not have it."""
        at = positions(vocabulary, [str(id_) for id_ in wanted])
        missing = np.flatnonzero(at < 0)
        if len(missing):
            warnings.warn(
                f'{len(missing)} of {len(wanted)} {what} ids are not in the log and are skipped; the first is '
                f'{wanted[missing[0]]!r}', stacklevel=4,
            )
        return at

    def _known(self, items: Iterable[Any], what: str) -> np.ndarray:
        """Positions of items that must be in the log."""
        wanted = _listed(items, what)
        at = positions(self._saved.dataset.item_ids, [str(id_) for id_ in wanted])
        if (at < 0).any():
            raise UserError(f'{what}: {wanted[int(np.argmin(at))]!r} is not in the log; ids look like {self.items[:3]}')
        return at

    def _allowed(self, exclude: Iterable[Any], only: Iterable[Any] | None) -> np.ndarray | None:
        """bool [items + 1] of the items that may be recommended; None where all may."""
        left_out, chosen = _listed(exclude, 'exclude'), None if only is None else _listed(only, 'only')
        if not left_out and chosen is None:
            return None
        item_ids = self._saved.dataset.item_ids
        allowed = np.full(self._saved.dataset.num_items + 1, chosen is None)
        if chosen is not None:
            allowed[(at := self._found(item_ids, chosen, 'item'))[at >= 0] + 1] = True
        allowed[(at := self._found(item_ids, left_out, 'item'))[at >= 0] + 1] = False
        return allowed

    def _ranked(
        self, names: pl.Series, read: list[np.ndarray], k: int, exclude_seen: bool, allowed: np.ndarray | None
    ) -> pl.DataFrame:
        items, scores = np.zeros((len(read), k), np.int32), np.full((len(read), k), -np.inf, np.float32)
        some = np.asarray([len(history) > 0 for history in read], bool)
        if some.any():
            known = [history for history in read if len(history)]
            items[some], scores[some] = self._top(known, k=k, exclude=known if exclude_seen else None, allowed=allowed)
        if not some.all():
            counts = np.where(allowed, self._counts, -np.inf) if allowed is not None else self._counts.astype(float)
            counts[0] = -np.inf
            order = np.argsort(-counts, kind='stable')[:k]
            items[~some], scores[~some] = order, counts[order]
        rows, places = np.nonzero(np.isfinite(scores))
        return pl.DataFrame({
            'user': names.gather(rows), 'rank': places + 1, 'item': self._item_ids.gather(items[rows, places] - 1),
            'score': scores[rows, places], 'reason': np.where(some, 'model', 'popularity')[rows],
        })


def _series(ids: Any) -> pl.Series:
    return pl.Series(ids) if isinstance(ids, np.ndarray) else ids.series()


def _listed(values: Any, what: str) -> list[Any]:
    """A list of what a caller gave; UserError for one text, which would be taken apart into its letters."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise UserError(f'{what} is {values!r}; it must be a list of ids')
    return list(values)
