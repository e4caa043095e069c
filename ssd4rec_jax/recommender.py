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

from ssd4rec_jax.added_items import of_features, of_neighbours, of_vectors, with_items
from ssd4rec_jax.answers import Answers
from ssd4rec_jax.arguments import listed, mapped, of_kind, one_of, text, truth, whole
from ssd4rec_jax.arguments import path as folder_path
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.data.dataset import SequenceDataset, save_dataset, with_split
from ssd4rec_jax.data.extend import extended
from ssd4rec_jax.data.prepare import fingerprint, prepare
from ssd4rec_jax.data.sources import FileSource, FrameSource, find_source
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.data.tables.frames import as_polars
from ssd4rec_jax.errors import CheckpointError, UserError
from ssd4rec_jax.export.formats import FORMATS
from ssd4rec_jax.live import LiveModel
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.presets.auto import auto_config
from ssd4rec_jax.rank.evaluation import SPLITS, Evaluator
from ssd4rec_jax.rank.new_items import neighbour_vectors, stand_beside
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.run.saved_run import SavedRun, load_run
from ssd4rec_jax.show.frames import in_library, library_of
from ssd4rec_jax.show.terminal import shown_progress
from ssd4rec_jax.train.launch import Launch, launch
from ssd4rec_jax.train.stop_signals import StopSignals
from ssd4rec_jax.train.warm_start import WarmStart, users_to_read, warm_config


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

    Histories that grow while it answers, and a folder that answers without this package:

    >>> live = rec.live()
    >>> sessions = live.begin([['i3', 'i4']])
    >>> live.append(sessions, ['i5'])
    >>> len(live.recommend(sessions, k=3))
    3
    >>> rec.export('exported')  # doctest: +SKIP

    preset: 'auto', which sizes the network for the log and this machine, 'published', or the name of a data set.
    settings: dotted settings that override the preset's, {'model.num_layers': 1}. config: a whole RunConfig instead.
    """

    def __init__(
        self, preset: str = 'auto', *, settings: Mapping[str, Any] | None = None, config: RunConfig | None = None
    ):
        self.preset, self.settings = text(preset, 'preset'), {}
        if settings:
            self.settings = mapped(settings, 'settings', 'settings and their values, {"model.num_layers": 1}')
        self.config = None if config is None else of_kind(config, 'config', RunConfig)
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
        reporter = _reporter(reporter)
        source = _source(data, user=user, item=item, time=time)
        self._library = library_of(data)
        folder = _folder(workdir)
        config, dataset, prepared, why = self._configured(source, folder)
        reporter.note(why)
        self._train(config, dataset, prepared, folder, Launch(), reporter)
        return self

    def update(
        self, data: Any, *, user: str | None = None, item: str | None = None, time: str | None = None,
        workdir: str | Path | None = None, reporter: Reporter | None = None,
    ) -> 'Recommender':
        """Go on from the present parameters with more rows of the log, new users and items included; returns self.

        data, user, item, time: as for `fit`, but the new rows alone. Training reads the histories that have grown, and
        half as many others; a new item begins with the mean of the items that it occurs beside.
        Columns that the network reads as features have to be among them.
        workdir: the folder of the new run, which leaves the one before as it is; a temporary one where it is not given.
        """
        saved = self._saved
        if not saved.dataset.num_users:
            raise UserError('this model was saved without histories, which an update needs: fit it on the whole log')
        if saved.config.data.split == 'files':
            raise UserError('the test items of this run came from files of their own: fit it on the longer log instead')
        reporter = _reporter(reporter)
        rows = _source(data, user=user, item=item, time=time, features=tuple(saved.dataset.features)).read()
        dataset = with_split(extended(saved.dataset, rows), saved.config.data)
        folder = _folder(workdir)
        prepared = folder / 'data' / f'prepared-{dataset.fingerprint[:12]}'
        save_dataset(dataset, prepared)
        params = saved.network.whole(saved.params)
        new = np.arange(saved.dataset.num_items + 1, dataset.num_items + 1)
        vectors = neighbour_vectors(params[ITEM_EMBEDDING], stand_beside(dataset, new))
        table = params[ITEM_EMBEDDING]
        params = {**params, ITEM_EMBEDDING: np.concatenate([table, vectors.astype(table.dtype)])}
        users = users_to_read(dataset, saved.dataset.lengths, seed=saved.config.train.seed)
        how = Launch(warm=WarmStart(params, users))
        self._train(warm_config(saved.config), dataset, prepared, folder, how, reporter)
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
            reporter.note(f'workdir: {folder}')
            result = launch(
                config, folder, lambda: (dataset, prepared), how, log_is_named=True, reporter=reporter,
                watch_for_stop=watch_for_stop,
            )
        finally:
            for stop in signals:
                stop.release()
        try:
            self._take(load_run(folder))
        except CheckpointError as error:
            if result is not None:
                raise
            raise UserError(
                f'stopped before the end of the first epoch, so that nothing answers yet: the same call with '
                f'workdir={str(folder)!r} goes on from there'
            ) from error

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
        answers = self._answers
        if features is not None:
            added = of_features(answers, features, item)
        elif beside is not None:
            added = of_neighbours(answers, beside)
        else:
            assert vectors is not None
            added = of_vectors(answers, vectors)
        self._take(with_items(answers.saved, added))
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
        from 0 in the column `user`. Users and items that the log does not have are left out with a warning, UnknownIds.
        A network that reads times (model.time) reads those of users; in histories all gaps in time count as typical.
        exclude_seen: leave out what a history holds, all of it. exclude: items to leave out for everyone; only: items
        to choose from. reason is 'model', or 'popularity' where a history holds no known item. Scores are dot products
        and what model.seen_bias adds to them; those of popularity are counts. A row is missing where fewer than k items
        are left.
        """
        frames = list(self.recommend_in_parts(
            users, histories, k=k, exclude_seen=exclude_seen, exclude=exclude, only=only
        ))
        return in_library(pl.concat(frames), self._library)

    def recommend_in_parts(
        self, users: Sequence[Any] | str | None = None, histories: Sequence[Sequence[Any]] | None = None, *,
        k: int = 10, exclude_seen: bool = False, exclude: Iterable[Any] = (), only: Iterable[Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[pl.DataFrame]:
        """`recommend` as polars frames of a few thousand users or histories each, made when they are asked for.

        share: (n, parts) answers the n-th, from 0, of so many equal parts of the users alone. Where a run has several
        processes, all of them must read all frames, which they compute together.
        """
        return self._answers.best(
            users, histories, k=k, exclude_seen=exclude_seen, exclude=exclude, only=only, share=share
        )

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
        split, seen = one_of(split, 'split', SPLITS), one_of(seen, 'seen', ('in', 'out', 'both'))
        items = saved.dataset.num_items
        try:
            cutoffs = tuple(whole(n, 'k', items) for n in listed(k, 'k'))
        except UserError:
            cutoffs = ()
        if not cutoffs:
            raise UserError(f'k={k!r} must be a list of whole numbers from 1 to the {items} items of the catalogue')
        if not saved.dataset.num_users:
            raise UserError('this model was saved without histories, so there is nothing to rank')
        evaluator = Evaluator(
            saved.config, saved.dataset, saved.network, saved.mesh, split, followers=saved.followers
        )
        frames = []
        for way in ('in', 'out') if seen == 'both' else (seen,):
            found = evaluator.evaluate(saved.params, longest_list=max(cutoffs), seen_out=way == 'out')
            rows = [found.metrics(cutoffs)]
            if lists:
                metrics = found.list_metrics(cutoffs)
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
    def num_users(self) -> int:
        """Users who can be asked for by id, as users='all' does, those whom the log's k-core left out included."""
        return self._answers.num_users

    @property
    def fingerprint(self) -> str:
        """sha256 hex of what decides the answers: settings, data, followers, and how long was trained."""
        return self._saved.fingerprint

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

    def live(self) -> LiveModel:
        """Sessions of the model: histories that grow by one event at a time (see ssd4rec_jax.live.LiveModel).

        They answer as the recommender does now; a later `update` or `add_items` does not change them.
        """
        return LiveModel(self._saved)

    # ---- folders

    def export(self, path: str | Path, *, format: str = 'jax') -> str:
        """Write the model for programs that do without this package, as `ssd4rec export` does; returns what, in words.

        format: 'jax', a folder whose load.py answers; 'vectors', the same and an index for vector search; 'torch', the
        weights under the authors' PyTorch names (docs/export.md). The folder appears whole, and replaces only another
        export. UserError where the model has no such form, or where a package of the extra `export` is missing.
        """
        return FORMATS[one_of(format, 'format', FORMATS)](folder_path(path, 'path'), self._saved)

    def save(self, path: str | Path, *, histories: bool = True) -> None:
        """Write a folder with all that `load` needs, to be copied anywhere; histories=False leaves out who did what."""
        saved = self._saved
        save_model(
            folder_path(path, 'path'), saved.config, saved.dataset, saved.network.whole(saved.params), step=saved.step,
            best_epoch=saved.best_epoch, histories=truth(histories, 'histories'), followers=saved.followers,
        )

    @classmethod
    def load(cls, path: str | Path, *, model_shards: int = 1) -> 'Recommender':
        """The recommender in a saved folder or in the workdir of a training run, finished or still training.

        model_shards: devices that share the item table; the run may have been trained on any number of them.
        """
        saved = load_run(folder_path(path, 'path'), model_shards=whole(model_shards, 'model_shards'))
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


def _source(
    data: Any, *, user: str | None, item: str | None, time: str | None, features: tuple[str, ...] = ()
) -> FileSource | FrameSource | SyntheticSource:
    """Where a log is read from: a frame, or the path of a file."""
    for name, column in (('user', user), ('item', item), ('time', time)):
        if column is not None:
            text(column, name)
    options = TableOptions(user=user, item=item, time=time, features=features)
    if isinstance(data, (str, Path)):
        return find_source('interactions', data, options=options)
    if not as_polars(data).select(pl.len()).collect().item():
        raise UserError('the frame holds no rows')
    return FrameSource(data, options)


def _folder(workdir: str | Path | None) -> Path:
    """The folder of a run; a new temporary one where none is named."""
    folder = folder_path(tempfile.mkdtemp(prefix='ssd4rec-') if workdir is None else workdir, 'workdir').absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f'workdir={str(workdir)!r} is a file: name a folder')
    return folder


def _reporter(reporter: Reporter | None) -> Reporter:
    return shown_progress() if reporter is None else of_kind(reporter, 'reporter', Reporter)
