"""A search over settings with Optuna: trials are runs, and validation alone decides between them."""
import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ssd4rec_jax.config.run import RunConfig, apply_overrides, flat
from ssd4rec_jax.errors import ConfigError, TrainingError, UserError
from ssd4rec_jax.files import replace_file
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.train.early_stopping import STOPPING_METRIC
from ssd4rec_jax.train.launch import Launch, Prepared, launch
from ssd4rec_jax.tune.space import Numbers, Space, as_toml, override

HEARTBEAT_SECONDS = 60  # A process that died leaves its trial to another after twice this time.


class Found(NamedTuple):
    """What a search has found so far.

    value: the best validation NDCG@10; config: its settings. trials: how many are finished or were pruned. importance:
    {setting: its share of what made trials differ}, the largest first; empty where there are too few trials to tell.
    """

    value: float
    config: RunConfig
    trials: int
    importance: dict[str, float]


def optuna() -> Any:
    """The module optuna; UserError names the extra that brings it."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'ssd4rec-jax[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # It warns of each trial that was stopped, with a traceback.
    return optuna


def search(
    base: RunConfig, space: Space, folder: Path, prepare: Callable[[RunConfig], Prepared], *, trials: int,
    minutes: float | None, stop_requested: Callable[[], bool], told: Callable[[str], None],
) -> Found | None:
    """Try settings until there are so many trials, the minutes are over or a stop is requested, and say what was found.

    base: the configuration that the space changes; where the space holds its settings, they are tried first. folder:
    holds study.db and the trials' runs; a search that lies there goes on, and several processes may search in it at
    once: one that finds as many trials ended or under way ends with those that have ended. prepare: the prepared log
    for a configuration. told: gets a sentence after each trial. None where no trial has ended. A trial is stopped early
    where its validation is below the median of the others after as many epochs. best.toml in the folder is always the
    best so far. TrainingError where all trials have ended and none has a result.
    """
    study = _study(folder, base, space)
    module = optuna()
    ended = (module.trial.TrialState.COMPLETE, module.trial.TrialState.PRUNED)

    def objective(trial: Any) -> float:
        # Numbers are given once, so that of two processes that begin the last trial at once one does.
        begun = study.get_trials(deepcopy=False, states=(*ended, module.trial.TrialState.RUNNING))
        if sum(other.number < trial.number for other in begun) >= trials:
            told(f'other processes run the last trials, or died less than {2 * HEARTBEAT_SECONDS} s ago')
            study.stop()
            raise _Stopped
        config = _with(base, space, trial)
        trial.set_user_attr('config', as_toml(config))
        watcher = _Watcher(trial, stop_requested)
        try:
            result = launch(
                config, folder / 'trials' / str(trial.number), lambda: prepare(config), Launch(), log_is_named=False,
                reporter=watcher, watch_for_stop=lambda: watcher.stops,
            )
        except UserError as error:  # These settings diverge, or need more memory than there is.
            told(f'trial {trial.number}: {error}')
            raise module.TrialPruned() from error
        if result is None and stop_requested():
            study.stop()
            raise _Stopped
        if result is None:
            raise module.TrialPruned()
        return result['valid'][STOPPING_METRIC]

    def tell(study: Any, trial: Any) -> None:
        if trial.state is module.trial.TrialState.FAIL:
            if stop_requested():
                told(f'trial {trial.number}: stopped, and does not count')
            return
        value = 'pruned' if trial.value is None else f'{trial.value:.4f}'
        found = _found(study, base, space)
        if found:
            replace_file(folder / 'best.toml', lambda file: file.write(as_toml(found.config).encode()))
            told(f'trial {trial.number}: validation {STOPPING_METRIC} {value}, best {found.value:.4f}')

    if len(study.get_trials(deepcopy=False, states=ended)) < trials:
        _try_first(study, base, space)
        study.optimize(
            objective, timeout=None if minutes is None else 60 * minutes, catch=_Stopped,
            callbacks=[tell, module.study.MaxTrialsCallback(trials, ended)],
        )
    found = _found(study, base, space)
    if found is None and len(study.get_trials(deepcopy=False, states=ended)) >= trials:
        raise TrainingError(
            f'{folder}: none of {trials} trials has a validation: search with other settings in --space, in a new '
            'folder'
        )
    return found


class _Stopped(Exception):
    """A trial does not run, or not to its end, and is then neither finished nor pruned."""


class _Watcher(Reporter):
    """Tells Optuna the validation of each epoch, and stops a trial that it prunes."""

    def __init__(self, trial: Any, stop_requested: Callable[[], bool]):
        self._trial, self._stop_requested, self._is_pruned = trial, stop_requested, False

    def evaluation(self, record: dict) -> None:
        """Report a validation."""
        if record['kind'] == 'valid':
            self._trial.report(record[STOPPING_METRIC], record['epoch'])
            self._is_pruned = self._trial.should_prune()

    def stops(self) -> bool:
        """Whether the trial's training shall stop after this step."""
        return self._is_pruned or self._stop_requested()


def _study(folder: Path, base: RunConfig, space: Space) -> Any:
    """The study of the folder, new or found there; UserError where another one lies there."""
    module = optuna()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f'{folder} is a file, or lies in one: name a folder for the search') from error
    with warnings.catch_warnings():
        # Heartbeats and these samplers are called experimental, which is nothing that a user could act on.
        warnings.simplefilter('ignore', module.exceptions.ExperimentalWarning)
        storage = module.storages.RDBStorage(
            f'sqlite:///{folder / "study.db"}', heartbeat_interval=HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=module.storages.RetryHeartbeatStaleTrialCallback(),
        )
        study = module.create_study(
            storage=storage, study_name='ssd4rec', direction='maximize', load_if_exists=True,
            sampler=module.samplers.TPESampler(multivariate=True, constant_liar=True),
            pruner=module.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
        )
    about = json.dumps({'base': dataclasses.asdict(base), 'space': space}, sort_keys=True)
    if study.user_attrs.setdefault('about', about) != about:
        raise UserError(f'{folder} holds a search with other settings or another space: name another folder')
    study.set_user_attr('about', about)
    return study


def _try_first(study: Any, base: RunConfig, space: Space) -> None:
    """Put base at the head of the queue, unless a trial has it already or the space leaves one of its settings out."""
    own = {key: flat(base)[key] for key in space}
    inside = all(
        own[key] in choice if isinstance(choice, list) else choice.low <= own[key] <= choice.high
        for key, choice in space.items()
    )
    fail = optuna().trial.TrialState.FAIL  # stopped, which counts for nothing
    had = (trial for trial in study.get_trials(deepcopy=False) if trial.state is not fail)
    if inside and not any(own in (trial.params, trial.system_attrs.get('fixed_params')) for trial in had):
        study.enqueue_trial(own)


def _with(base: RunConfig, space: Space, trial: Any) -> RunConfig:
    """base with the settings that a trial tries."""
    def suggested(key: str, choice: Numbers | list) -> Any:
        if isinstance(choice, list):
            return trial.suggest_categorical(key, choice)
        draw = trial.suggest_int if isinstance(choice.low, int) else trial.suggest_float
        return draw(key, choice.low, choice.high, log=choice.log)

    return apply_overrides(base, [override(key, suggested(key, choice)) for key, choice in space.items()])


def _found(study: Any, base: RunConfig, space: Space) -> Found | None:
    module = optuna()
    states = module.trial.TrialState
    done = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
    if not done:
        return None
    best = max(done, key=lambda trial: trial.value)
    config = _with(base, space, module.trial.FixedTrial(best.params))
    ended = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
    return Found(best.value, config, len(ended), _importance(study, len(done)))


def _importance(study: Any, complete: int) -> dict[str, float]:
    """{setting: its share}; empty for a handful of trials, which tell nothing."""
    if complete < 5:
        return {}
    module = optuna()
    return dict(module.importance.get_param_importances(
        study, evaluator=module.importance.PedAnovaImportanceEvaluator()
    ))
