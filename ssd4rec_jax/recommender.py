"""A recommender to hold: fit on a table, load from a folder, ask for items by original ids."""
import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.data.dataset import SequenceDataset, save_dataset, with_split
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.ids import positions
from ssd4rec_jax.data.prepare import fingerprint, prepare
from ssd4rec_jax.data.sources import FileSource, FrameSource, find_source
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.data.tables.frames import as_polars
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.model.network import abstract_network
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, shardings
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.presets.auto import auto_config
from ssd4rec_jax.rank.evaluation import SPLITS, Evaluator
from ssd4rec_jax.rank.new_items import feature_vectors, neighbour_vectors
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import SavedRun, load_run
from ssd4rec_jax.show.frames import in_library, library_of
from ssd4rec_jax.show.terminal import shown_progress
from ssd4rec_jax.train.launch import Launch, launch
from ssd4rec_jax.train.stop_signals import StopSignals

# An update trains this share of the epochs that the first training took to its best, at this share of its rates: the
# optimiser begins anew, and at full rate its first steps would undo what the table has learnt.
UPDATE_SHARE, UPDATE_RATE = 0.1, 0.1


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
        self._taken: Answers | None = None
        self._library = 'polars'

    # ---- fitting

    def fit(
        self, data: Any, *, user: str | None = None, item: str | None = None, time: str | None = None,
        workdir: str | Path | None = None, reporter: Reporter | None = None,
    ) -> 'Recommender':
        """Train on a log, or go on where an earlier call stopped in the same workdir; returns self.

        data: a frame of polars or pandas, a pyarrow table, or the path of a log in any form that `ssd4rec train` reads.
        user, item, time: names of the columns; found by their usual names where they are not given, time='none' takes
        the order of the rows. workdir: the folder of the run; a temporary one where it is not given. reporter: hears of
        the run; a progress bar in a terminal or a notebook where it is not given. Ctrl-C stops after the step that
        runs, with what has been learnt so far. UserError says what is wrong with the log or the settings.
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
        (reporter := reporter or shown_progress()).note(why)
        self._train(config, dataset, prepared, folder, Launch(), reporter)
        return self

    def update(
        self, data: Any, *, user: str | None = None, item: str | None = None, time: str | None = None,
        workdir: str | Path | None = None, reporter: Reporter | None = None,
    ) -> 'Recommender':
        """Go on from the present parameters with more rows of the log, new users and items included; returns self.

        data, user, item, time: as for `fit`, but the new rows alone. The whole log is read again, for about a tenth of
        the epochs that the first training took; a new item begins with the mean of the items that it occurs beside.
        Columns that the network reads as features have to be among them.
        workdir: the folder of the new run, which leaves the one before as it is; a temporary one where it is not given.
        """
        saved = self._saved
        if not saved.dataset.num_users:
            raise UserError('this model was saved without histories, which an update needs: fit it on the whole log')
        if saved.config.data.split == 'files':
            raise UserError('the test items of this run came from files of their own: fit it on the longer log instead')
        options = TableOptions(user=user, item=item, time=time, features=tuple(saved.dataset.features))
        rows = (find_source('interactions', data, options=options) if isinstance(data, (str, Path))
                else FrameSource(data, options)).read()
        dataset = with_split(extended(saved.dataset, rows), saved.config.data)
        folder = Path(workdir or tempfile.mkdtemp(prefix='ssd4rec-')).absolute()
        prepared = folder / 'data' / f'prepared-{dataset.fingerprint[:12]}'
        save_dataset(dataset, prepared)
        params = saved.network.whole(saved.params)
        new = np.arange(saved.dataset.num_items + 1, dataset.num_items + 1)
        vectors = neighbour_vectors(params[ITEM_EMBEDDING], _beside(dataset, new))
        table = params[ITEM_EMBEDDING]
        params = {**params, ITEM_EMBEDDING: np.concatenate([table, vectors.astype(table.dtype)])}
        train = saved.config.train
        config = dataclasses.replace(saved.config, train=dataclasses.replace(
            train, max_epochs=max(1, round(UPDATE_SHARE * saved.best_epoch)),
            table_learning_rate=UPDATE_RATE * train.table_learning_rate,
            learning_rate=UPDATE_RATE * train.learning_rate,
        ))
        self._train(config, dataset, prepared, folder, Launch(initial=params), reporter or shown_progress())
        return self

    def _train(
        self, config: RunConfig, dataset: SequenceDataset, prepared: Path, folder: Path, how: Launch, reporter: Reporter
    ) -> None:
        """Launch a run and answer with it from now on; a Ctrl-C ends it with what it has."""
        enable_compilation_cache()
        signals: list[StopSignals] = []

        def watch_for_stop() -> Callable[[], bool]:
            if threading.current_thread() is not threading.main_thread():
                return lambda: False  # only the main thread hears of signals
            signals.append(StopSignals())
            return signals[0].requested

        try:
            launch(
                config, folder, lambda: (dataset, prepared), how, log_is_named=True, reporter=reporter,
                watch_for_stop=watch_for_stop,
            )
        finally:
            for stop in signals:
                stop.release()
        self._take(load_run(folder))

    def add_items(
        self, *, vectors: Mapping[Any, Any] | None = None, beside: Mapping[Any, Sequence[Any]] | None = None,
        features: Any = None, item: str = 'item',
    ) -> 'Recommender':
        """Give items that the log does not have a vector, so that they are recommended without training; returns self.

        One of: vectors, {id: D numbers}; beside, {id: ids of items that it occurs beside}, whose mean it gets;
        features, a frame with the column `item` and further columns of text or categories for known and new items, from
        which a ridge regression makes the vectors. UserError where an id is known already, or where nothing is known of
        an item.
        """
        if sum(given is not None for given in (vectors, beside, features)) != 1:
            raise UserError('give one of vectors={id: numbers}, beside={id: [item, ...]} or features=frame')
        table = self._answers.table
        if features is not None:
            frame = as_polars(features).collect()
            if item not in frame.columns:
                raise UserError(f'features has no column {item!r}; it has {", ".join(frame.columns)}')
            at = positions(self._saved.dataset.item_ids, [str(i) for i in frame[item].to_list()])
            known, new = frame.filter(pl.Series(at >= 0)), frame.filter(pl.Series(at < 0))
            if not len(known) or not len(new):
                raise UserError(f'features has {len(known)} known and {len(new)} new items; it needs some of both')
            names = new[item].to_list()
            found = feature_vectors(known.drop(item), self.item_vectors[at[at >= 0]], new.drop(item))
        elif beside is not None:
            names = list(beside)
            found = neighbour_vectors(
                table, [self._answers.known(ids, f'beside[{name!r}]') + 1 for name, ids in beside.items()]
            )
        else:
            names = list(vectors or {})
            found = np.asarray([np.asarray(v, np.float32) for v in (vectors or {}).values()])
            if found.shape != (len(names), table.shape[1]) or not np.isfinite(found).all():
                raise UserError(f'vectors must be {table.shape[1]} finite numbers for each item')
        self._append_items(names, found)
        return self

    def _append_items(self, names: list[Any], vectors: np.ndarray) -> None:
        saved = self._saved
        at = positions(saved.dataset.item_ids, [str(name) for name in names])
        if (at >= 0).any():
            raise UserError(f'{names[int(np.argmax(at >= 0))]!r} is in the catalogue already')
        known = saved.dataset.item_ids
        item_ids = (
            TextIds.of([*known.tolist(), *(str(n).strip() for n in names)]) if isinstance(known, TextIds)
            else np.concatenate([np.asarray(known), np.asarray([int(n) for n in names], np.int64)])
        )
        network, _ = abstract_network(saved.config.model, len(item_ids), saved.mesh)
        whole = saved.network.whole(saved.params)
        table = np.concatenate([whole[ITEM_EMBEDDING], vectors.astype(whole[ITEM_EMBEDDING].dtype)])
        params = network.split({**whole, ITEM_EMBEDDING: table}, saved.mesh)
        self._take(dataclasses.replace(
            saved, dataset=dataclasses.replace(saved.dataset, item_ids=item_ids), network=network,
            params=jax.device_put(params, shardings(params, saved.mesh)),
            item_counts=np.concatenate([saved.item_counts, np.zeros(len(names), np.int64)]),
        ))

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
            published = apply_overrides(default_config('interactions'), own)
            config, why = auto_config(published, prepared_with(published)[0], platform=jax.default_backend())
            config = apply_overrides(config, overrides)
        else:
            name = 'interactions' if self.preset == 'published' else self.preset
            config = dataclasses.replace(apply_overrides(default_config(name), overrides), dataset='interactions')
            why = f'settings: the preset {self.preset}'
        return config, *prepared_with(config), why

    # ---- asking

    def recommend(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *,
        k: int = 10, exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
    ) -> Any:
        """The k best next items of each user or history: a frame with the columns user, rank, item, score, reason.

        users: original ids of users of the log, or 'all'. histories: lists of original item ids in time order, numbered
        from 0 in the column `user`. Users and items that the log does not have are left out with a warning. A network
        that reads times (model.time) reads those of users; in histories all gaps in time count as typical.
        exclude_seen: leave out what a history holds, all of it. exclude: items to leave out for everyone; only: items
        to choose from. reason is 'model', or 'popularity' where a history holds no known item. Scores are dot products;
        those of popularity are counts. A row is missing where fewer than k items are left.
        """
        frames = list(self.recommend_in_parts(
            users, histories, k=k, exclude_seen=exclude_seen, exclude=exclude, only=only
        ))
        return in_library(pl.concat(frames), self._library)

    def recommend_in_parts(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *,
        k: int = 10, exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """`recommend` as polars frames of a few thousand users or histories each, made when they are asked for."""
        return self._answers.best(users, histories, k=k, exclude_seen=exclude_seen, exclude=exclude, only=only)

    def evaluate(
        self, split: str = 'test', k: Sequence[int] = (5, 10, 20), seen: str = 'both', *, lists: bool = False
    ) -> Any:
        """How the held-out items of a split rank: a frame with the columns seen, metric, value, low, high.

        split: 'test' or 'valid'. k: the list lengths that HR, NDCG and MRR are taken at. seen: 'in' ranks what a
        history holds along with the rest, as published tables do; 'out' leaves it out, and a target that is in the
        history counts as not found; 'both' gives both. low and high bound the 95% bootstrap interval over users.
        lists: also coverage, Gini index, novelty and tail share of the lists, without an interval.
        """
        saved = self._saved
        for name, value, known in (('split', split, SPLITS), ('seen', seen, ('in', 'out', 'both'))):
            if value not in known:
                raise UserError(f'{name}={value!r} must be one of {", ".join(known)}')
        if not k or not all(isinstance(n, int) and 1 <= n <= saved.dataset.num_items for n in k):
            items = saved.dataset.num_items
            raise UserError(f'k={k!r} must be whole numbers from 1 to the {items} items of the catalogue')
        if not saved.dataset.num_users:
            raise UserError('this model was saved without histories, so there is nothing to rank')
        evaluator = Evaluator(saved.config, saved.dataset, saved.network, saved.mesh, split)
        frames = []
        for way in ('in', 'out') if seen == 'both' else (seen,):
            found = evaluator.evaluate(saved.params, longest_list=max(k), seen_out=way == 'out')
            rows = [found.metrics(tuple(k))]
            if lists:
                metrics = found.list_metrics(tuple(k))
                rows.append(pl.DataFrame({'metric': list(metrics), 'value': list(metrics.values())}))
            frames.append(pl.concat(rows, how='diagonal').select(pl.lit(way).alias('seen'), pl.all()))
        return in_library(pl.concat(frames), self._library)

    def score(self, histories: Sequence[Sequence[Any]], items: Sequence[Any]) -> np.ndarray:
        """float32 [histories, items]: the score of each item as the next one; NaN for a history without known items."""
        return self._answers.scores(histories, items)

    def user_vectors(self, histories: Sequence[Sequence[Any]]) -> np.ndarray:
        """float32 [histories, D], whose dot products with `item_vectors` are the scores; NaN without known items.

        With model.seen_bias, items of the history score higher or lower than that (see `score`).
        """
        return self._answers.vectors(histories)

    @property
    def items(self) -> list[Any]:
        """Original ids of the catalogue, in the order of `item_vectors`."""
        return self._answers.item_ids.to_list()

    @property
    def item_vectors(self) -> np.ndarray:
        """float32 [items, D]."""
        return self._answers.item_vectors[1:]

    def similar_items(self, item: Any, k: int = 10) -> Any:
        """The k items whose vectors have the highest cosine with an item's: a frame with the columns rank, item,
        cosine.
        """
        return in_library(self._answers.similar(item, k), self._library)

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
        self._taken = Answers(saved)

    @property
    def _answers(self) -> Answers:
        if self._taken is None:
            raise UserError('this Recommender is not fitted yet: call fit(frame) first, or Recommender.load(folder)')
        return self._taken

    @property
    def _saved(self) -> SavedRun:
        return self._answers.saved


def _beside(dataset: SequenceDataset, items: np.ndarray) -> list[np.ndarray]:
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
