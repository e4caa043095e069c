"""Open the folder of a training run, finished or still training, to answer with it."""
import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from ssd4rec_jax.config.run import RunConfig, differences, flat, from_dict, to_dict
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, with_split
from ssd4rec_jax.data.followers import Followers, count_followers, followers_of
from ssd4rec_jax.errors import CheckpointError, ConfigError, DataError
from ssd4rec_jax.files import write_json
from ssd4rec_jax.model.network import Network, abstract_network
from ssd4rec_jax.parallel.mesh import device_mesh, shardings
from ssd4rec_jax.parallel.out_of_memory import foretell_out_of_memory
from ssd4rec_jax.run.checkpoints import Checkpoints, Restored
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.model_folder import is_model_folder, item_counts, model_step, open_model

_PREPARED = 'prepared'


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The config that a run's best parameters (by validation NDCG@10) were trained with, the data and the parameters.

    dataset: the prepared data, or what a saved model keeps of it: no users where their histories were left out.
    params: placed on the mesh, the item table split over `model` and padded where it does not divide evenly.
    item_counts: int64 [items + 1], how often each item occurs. step: the step at which the parameters were taken.
    followers: what the follower term adds in ranking; None without it.
    """

    config: RunConfig
    dataset: SequenceDataset
    mesh: Mesh
    network: Network
    params: dict
    best_epoch: int
    step: int
    item_counts: np.ndarray
    followers: Followers | None

    @property
    def fingerprint(self) -> str:
        """sha256 hex of the settings, the data, the step and the followers, whose weight validation may have chosen.

        Runs that differ in none of them give the same answers.
        """
        followers = '' if self.followers is None else hashlib.sha256(self.followers.strength.tobytes()).hexdigest()
        told = to_dict(self.config), self.dataset.fingerprint, self.dataset.num_items, self.step, followers
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_config(folder: RunFolder, config: RunConfig, prepared: Path) -> None:
    """Write config.json: the config, and the folder where its data lies prepared."""
    write_json(folder.config, {**to_dict(config), _PREPARED: str(prepared)})


def read_config(folder: RunFolder) -> tuple[RunConfig, Path] | None:
    """What write_config wrote, None where the folder holds no run; ConfigError where it is damaged."""
    stored = folder.read_json(folder.config)
    if stored is None:
        return None
    prepared = stored.pop(_PREPARED, '')
    if not isinstance(prepared, str) or '\0' in prepared:
        raise ConfigError(f'{folder.config} is damaged: {_PREPARED} is {prepared!r}, not a folder')
    try:
        return from_dict(stored), Path(prepared)
    except ConfigError as error:
        raise ConfigError(f'{folder.config}: {error}') from error


def checkpoint_config(meta: dict, dataset: str) -> RunConfig:
    """The config that a checkpoint's weights were trained with.

    dataset: the name to take where an older version left it out of the checkpoint.
    """
    return from_dict({'dataset': dataset, **meta['config']})


def answer_settings(config: RunConfig) -> dict:
    """The settings that decide what given weights answer: how the network computes, and what it reads and is asked.

    Not whether the weight of followers is chosen: that is done at the end, whatever the epochs were ranked with.
    """
    kinds = 'dataset', 'model.', 'data.max_history', 'data.split'
    return {
        key: value for key, value in flat(config).items() if key.startswith(kinds) and key != 'model.fit_followers'
    }


def load_run(path: str | Path, *, model_shards: int = 1) -> SavedRun:
    """The run or the saved model in a folder, on all devices, model_shards of which share the item table.

    The run may have been trained on any number of devices. A finished run answers from its folder `model`, which needs
    nothing else; one that trains, or trains on, from its best checkpoint and its prepared data. It answers with the
    config that is stored beside the weights; a config.json that says something else is warned of. CheckpointError where
    it has no evaluated checkpoint yet, DataError where its prepared data is gone or another.
    """
    folder, mesh = RunFolder(path), device_mesh(model_shards=model_shards)
    if is_model_folder(folder.path):
        return _open_model(folder.path, mesh)
    found = read_config(folder)
    if found is None:
        raise CheckpointError(
            f'--workdir={path} holds neither a training run (config.json) nor a saved model (model.json): name the '
            'folder of one'
        )
    written, prepared = found
    checkpoints = Checkpoints(folder.checkpoints)
    newest = checkpoints.newest_meta()
    if (step := model_step(folder.model)) and (newest is None or newest.get('best_step') == step):
        try:
            saved = _open_model(folder.model, mesh)
            _compare(folder, written, saved.config, 'the saved model', "model's")
            return _with_histories(saved, prepared)
        except CheckpointError as error:
            logging.warning('%s: the best checkpoint answers in its place', error)
    dataset = open_dataset(prepared)
    if dataset is None:
        raise DataError(
            f'the prepared data of {path} is no longer in {prepared}: run its training command again, which prepares it'
        )
    checkpoints = Checkpoints(folder.checkpoints, rows=dataset.num_items + 1)
    if newest:
        _compare(folder, written, checkpoint_config(newest, written.dataset), 'the newest checkpoint', "checkpoints'")
    attempt = 0
    while True:  # a training process may retire the checkpoints that are being read
        before, attempt = checkpoints.steps(), attempt + 1
        try:
            saved = _restore(path, checkpoints, written, dataset, mesh)
        except (CheckpointError, FileNotFoundError):
            if checkpoints.steps() == before:
                raise
            continue
        if checkpoints.steps() == before or attempt > 9:
            return saved


def _compare(folder: RunFolder, written: RunConfig, own: RunConfig, what: str, whose: str) -> None:
    """Warn where config.json is not the config of the weights, which is the one that answers."""
    if different := differences(written, own):
        logging.warning(
            '%s is not the config that %s was trained with (%s): the answer is computed with the %s own',
            folder.config, what, '; '.join(different), whose,
        )


def _open_model(path: Path, mesh: Mesh) -> SavedRun:
    description, config, dataset, counts, network, params, followers = open_model(path, mesh)
    return SavedRun(
        config, dataset, mesh, network, params, description['best_epoch'], description['step'], counts, followers
    )


def _with_histories(saved: SavedRun, prepared: Path) -> SavedRun:
    """A run's model that was told to keep no histories takes them from the prepared data, as long as that is there."""
    if saved.dataset.num_users:
        return saved
    there = open_dataset(prepared)
    if there is None or there.fingerprint != saved.dataset.fingerprint:
        return saved
    return dataclasses.replace(saved, dataset=with_split(there, saved.config.data))


def _restore(
    path: str | Path, checkpoints: Checkpoints, written: RunConfig, dataset: SequenceDataset, mesh: Mesh
) -> SavedRun:
    step = checkpoints.best_step()
    if not step:
        raise CheckpointError(f'{checkpoints.directory} holds no evaluated checkpoint yet: train at least one epoch')
    meta = checkpoints.meta(step)
    config = checkpoint_config(meta, written.dataset)
    if meta['fingerprint'] != dataset.fingerprint:
        raise DataError(
            f'the data that {path} was trained on is not what its config.json names: run its training command again, '
            'which prepares it'
        )
    dataset = with_split(dataset, config.data)
    network, like = abstract_network(config.model, dataset.num_items, mesh)
    placed = jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like, shardings(like, mesh)
    )
    foretell_out_of_memory('evaluation', placed, mesh)
    averaged = {name: placed[name] for name in meta.get('averaged', ())}
    best: Restored = checkpoints.restore(step, {'params': placed, 'averaged': averaged})
    params, epoch = {**best.state['params'], **best.state['averaged']}, _epoch(meta, step)
    followers = _followers(RunFolder(path), config, dataset, epoch)
    return SavedRun(config, dataset, mesh, network, params, epoch, step, item_counts(dataset), followers)


def _followers(folder: RunFolder, config: RunConfig, dataset: SequenceDataset, epoch: int) -> Followers | None:
    """With the weight that the run chose at its end, if it has ended with this epoch as its best."""
    if getattr(config.model, 'fit_followers', False):
        result = folder.result_of_earlier() or {}
        if result.get('best_epoch') == epoch and 'follower_weight' in result:
            return count_followers(dataset).times(result['follower_weight'])
    return followers_of(config.model, dataset)


def _epoch(meta: dict, step: int) -> int:
    """The epoch that a checkpoint ends, counted from 1."""
    stopping = meta['stopping']
    return stopping['best_epoch'] if stopping['best_step'] == step else meta['epoch']
