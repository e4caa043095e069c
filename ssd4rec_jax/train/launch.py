"""A training run from a folder, a config and a log: begun, gone on with, or found finished."""
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from ssd4rec_jax.config.run import RunConfig, differences, flat
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset
from ssd4rec_jax.data.summary import kept_lines
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.files import unused_path
from ssd4rec_jax.parallel.processes import agree, is_first, on_first, several, together
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import checkpoint_config, read_config, write_config
from ssd4rec_jax.train.trainer import Trainer
from ssd4rec_jax.train.warm_start import WarmStart

Prepared = tuple[SequenceDataset, Path]


class Launch(NamedTuple):
    """How a run is entered.

    restart: set aside what lies in the folder and begin anew. adopt_config: go on with a config that differs from the
    run's. model_shards: devices that share the item table. histories: whether the run's model keeps what each user did.
    warm: what a new run goes on from; None begins afresh.
    """

    restart: bool = False
    adopt_config: bool = False
    model_shards: int = 1
    histories: bool = True
    warm: WarmStart | None = None


def launch(
    config: RunConfig, path: Path, prepare: Callable[[], Prepared], how: Launch, *, log_is_named: bool,
    reporter: Reporter, watch_for_stop: Callable[[], Callable[[], bool]],
) -> dict[str, Any] | None:
    """Train in the folder `path` to the end, from where a run of this config stood there, and return its result.

    Every process of the run calls it alike. None where the run was asked to stop; it is saved then. A finished run's
    result is returned as it is. prepare: the prepared data and its folder. log_is_named: whether the caller says which
    log it is, so that another one than the run's is an error. watch_for_stop: called when training is about to begin;
    what it returns says after each step whether to stop.
    """
    # Before anything is done for which the processes have to be of one mind.
    agree({
        '--workdir': str(path), '--restart': how.restart, '--adopt_config': how.adopt_config,
        '--model_shards': how.model_shards, **flat(config),
    })
    if how.restart:
        on_first(lambda: _move_aside(path, reporter))
    workdir = RunFolder(path)
    try:
        on_first(workdir.lock)
        together(workdir.check_seen)
        return _train_in(workdir, config, prepare, how, log_is_named, reporter, watch_for_stop)
    finally:  # an error that somebody keeps, as a notebook does, must not keep the folder
        workdir.release()
        reporter.close()


def _train_in(
    workdir: RunFolder, config: RunConfig, prepare: Callable[[], Prepared], how: Launch, log_is_named: bool,
    reporter: Reporter, watch_for_stop: Callable[[], Callable[[], bool]],
) -> dict[str, Any] | None:
    """`launch` in a folder that is held."""
    found = together(lambda: _found_run(workdir, config, how.adopt_config))
    if found and found.is_current and on_first(lambda: _is_finished(workdir, found, prepare, log_is_named, reporter)):
        reporter.note(f'{workdir.path} is finished:')
        return workdir.read_result() or {}
    if several():  # the first one prepares what the others open
        on_first(lambda: str(prepare()[1]))
    dataset, prepared = together(prepare)
    reporter.note('\n'.join([f'data: {prepared}', *kept_lines(dataset, prepared)]))
    trainer = Trainer(
        config, dataset, workdir, model_shards=how.model_shards, reporter=reporter, stop_requested=watch_for_stop(),
        on_saved=lambda: _adopt(workdir, config, prepared), histories=how.histories, warm=how.warm,
    ).open()
    if found is None or found.is_current:  # a new config takes the run over with its first checkpoint
        on_first(lambda: write_config(workdir, config, prepared))
    return trainer.run()


@dataclasses.dataclass(frozen=True)
class _FoundRun:
    """The run that lies in the workdir.

    config: the one that is asked for; is_current says whether it is the run's. prepared: the folder of the run's data.
    fingerprint: of the data that the run was trained on, None before its first checkpoint.
    """

    config: RunConfig
    prepared: Path
    is_current: bool
    fingerprint: str | None


def _found_run(workdir: RunFolder, config: RunConfig, adopt_config: bool) -> _FoundRun | None:
    """The run that the workdir holds, if any, once it has trained something.

    ConfigError if it is another config's and adopt_config is not given.

    The newest checkpoint says what the run's config is: config.json follows it.
    """
    found = read_config(workdir)
    if found is None:
        if workdir.checkpoints.exists():
            raise ConfigError(f'{workdir.path} holds checkpoints but no config.json: name another --workdir')
        return None
    written, prepared = found
    if _nothing_was_trained(workdir):
        return None
    newest = Checkpoints(workdir.checkpoints).newest_meta()
    own = checkpoint_config(newest, written.dataset) if newest else written
    different = differences(own, config)
    if different and not adopt_config:
        raise ConfigError(
            f'{workdir.path} holds a run of another config ({"; ".join(different)}). Name another --workdir, '
            'set it aside with --restart, or go on with the new config with --adopt_config'
        )
    if not different and (odd := differences(written, own)):
        logging.warning(
            "%s is not the config of the newest checkpoint (%s): going on with the checkpoint's", workdir.config,
            '; '.join(odd),
        )
        if is_first():
            _adopt(workdir, config, prepared)
    return _FoundRun(config, prepared, not different, newest['fingerprint'] if newest else None)


def _nothing_was_trained(workdir: RunFolder) -> bool:
    """Whether a run ended before its first checkpoint, as for want of memory, so that another config loses nothing."""
    kept = workdir.checkpoints.glob('[!.]*')  # all but what is partial
    return not (any(kept) or workdir.result.exists() or workdir.model.exists())


def _adopt(workdir: RunFolder, config: RunConfig, prepared: Path) -> None:
    """Make config.json follow a checkpoint of another config; the result of the config before is set aside first."""
    found = read_config(workdir)
    if found is None or differences(found[0], config):
        if workdir.result.exists():
            workdir.result.rename(unused_path(workdir.result.with_name(f'{workdir.result.name}.old')))
        write_config(workdir, config, prepared)


def _is_finished(
    workdir: RunFolder, found: _FoundRun, prepare: Callable[[], Prepared], log_is_named: bool, reporter: Reporter
) -> bool:
    """Whether the run has its result; data of it that is gone or damaged is then prepared again.

    ConfigError if the log that is named is another one than the run's.
    """
    if workdir.read_result() is None:
        return False
    there = open_dataset(found.prepared)
    expected = found.fingerprint or (there and there.fingerprint)
    is_sound = there is not None and there.fingerprint == expected
    if is_sound and not log_is_named:
        return True
    try:
        dataset, prepared = prepare()
    except DataError as error:
        if is_sound:
            raise
        reporter.note(
            f'warning: the data of the run is no longer in {found.prepared} and cannot be prepared again ({error})'
        )
        return True
    if expected and dataset.fingerprint != expected:
        raise ConfigError(
            f'{workdir.path} holds a finished run on another log ({found.prepared}; this one is {prepared}): '
            'name another --workdir, or set it aside with --restart'
        )
    if not is_sound:
        write_config(workdir, found.config, prepared)
        reporter.note(f'the data of the run was no longer in {found.prepared} and is prepared again: {prepared}')
    return True


def _move_aside(path: Path, reporter: Reporter) -> None:
    if not (path / 'config.json').exists():
        return  # no run lies there
    held = RunFolder(path)
    held.lock()  # refuses while another process trains there; held until the run has its new name
    path.rename(aside := unused_path(path))
    held.release()
    reporter.note(f'moved the run that lay in {path} to {aside}')
