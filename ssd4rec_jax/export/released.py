"""The released PyTorch model: a run under its names, and its checkpoints as models of this package."""
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.prepare import fingerprint
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.data.sources import find_source
from ssd4rec_jax.errors import CheckpointError, ConfigError, UserError
from ssd4rec_jax.export.folder import export_folder
from ssd4rec_jax.export.torch_file import Inert, Tensor, TorchFile
from ssd4rec_jax.files import first_line
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.model.released_weights import to_params, to_torch_params
from ssd4rec_jax.run.model_folder import id_series, save_model
from ssd4rec_jax.run.saved_run import SavedRun

TABLE = 'item_embedding.weight'
# The settings of the released model, which has our names for them.
SETTINGS = (
    'hidden_size', 'num_layers', 'd_state', 'd_conv', 'expand', 'headdim', 'beta', 'dropout_prob', 'norm_embedding',
)
_NOT_IN_SHAPES = 'beta', 'norm_embedding'
_CORES = {'user_inter_num_interval': 'min_user_interactions', 'item_inter_num_interval': 'min_item_interactions'}


class Checkpoint(NamedTuple):
    """weights: by PyTorch's names, in PyTorch's layouts. settings: those of its training that it holds, as RecBole's
    config names them."""

    weights: dict[str, np.ndarray]
    settings: dict[str, Any]


def export_released(path: Path, saved: SavedRun) -> str:
    """Write weights.safetensors with the released names, items.parquet with the ids of its rows, and export.json.

    Returns what was written in words. ConfigError where the released network would compute something else.
    """
    config = saved.config.model
    if not isinstance(config, ModelConfig):
        raise ConfigError(f'the released PyTorch network cannot hold a model of model.name={config.name}')
    weights = to_torch_params(saved.network.whole(saved.params), config)
    wide = {name: np.ascontiguousarray(a, np.promote_types(a.dtype, np.float32)) for name, a in weights.items()}
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings |= {name: f'[{getattr(saved.config.data, core)},inf)' for name, core in (
        ('user_inter_num_interval', 'user_core'), ('item_inter_num_interval', 'item_core'),
    )}
    with export_folder(path, saved, 'torch', {}) as folder:
        save_file(wide, folder / 'weights.safetensors', metadata={'config': json.dumps(settings)})
        pl.DataFrame({
            'row': np.arange(1, saved.dataset.num_items + 1), 'item': id_series(saved.dataset.item_ids),
        }).write_parquet(folder / 'items.parquet')
    return f'weights.safetensors with {len(wide)} tensors, items.parquet with the ids of the rows of {TABLE}'


def read_checkpoint(path: Path) -> Checkpoint:
    """A released checkpoint as RecBole saves it, a state dict alone, or weights.safetensors of `export_released`.

    Nothing that the file says is run (ssd4rec_jax.export.torch_file). CheckpointError where it is something else.
    """
    if path.suffix == '.safetensors':
        try:
            with safe_open(path, framework='np') as stored:
                settings = _wanted(json.loads((stored.metadata() or {}).get('config', '{}')))
                return Checkpoint({name: stored.get_tensor(name) for name in stored.keys()}, settings)  # noqa: SIM118
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f'{path} cannot be read as safetensors ({first_line(error)})') from error
    file = TorchFile(path)
    content = file.content if isinstance(file.content, dict) else {}
    state = content.get('state_dict', content)
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)} if isinstance(state, dict) else {}
    if TABLE not in tensors:
        raise CheckpointError(f'{path} holds no {TABLE}, so that it is no checkpoint of the released SSD4Rec')
    return Checkpoint(file.arrays(tensors), _settings(content.get('config')))


def _settings(config: Any) -> dict[str, Any]:
    """RecBole's Config keeps its values in final_config_dict."""
    state = config.state if isinstance(config, Inert) else None
    return _wanted(state.get('final_config_dict') if isinstance(state, dict) else None)


def _wanted(held: Any) -> dict[str, Any]:
    return {name: held[name] for name in (*SETTINGS, *_CORES) if name in held} if isinstance(held, dict) else {}


def settings_of(checkpoint: Checkpoint, config: RunConfig) -> tuple[RunConfig, list[str]]:
    """(config with what the checkpoint says of its network and data, the settings that it does not say).

    Its shapes decide sizes, whatever its config says. CheckpointError where they fit no such network.
    """
    weights = checkpoint.weights
    try:
        rows, hidden = weights[TABLE].shape
        first = 'BiSSD_layers.0.forward_ssd.'
        (inner,), (heads,) = weights[f'{first}norm.weight'].shape, weights[f'{first}A_log'].shape
        channels, _, d_conv = weights[f'{first}conv1d.weight'].shape
        layers = {int(found[1]) for name in weights if (found := re.match(r'BiSSD_layers\.(\d+)\.', name))}
        shapes = dict(
            hidden_size=hidden, num_layers=len(layers), expand=inner // hidden, headdim=inner // heads, d_conv=d_conv,
            d_state=(channels - inner) // 2,
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f'the checkpoint is of no SSD4Rec network ({first_line(error)})') from error
    said = {
        name: value for name, value in checkpoint.settings.items()
        if isinstance(value, (bool, int, float)) and math.isfinite(value)
    }
    model = {name: type(getattr(config.model, name))(said[name]) for name in SETTINGS if name in said}
    cores: dict[str, Any] = {
        name: int(found[1]) for recbole, name in _CORES.items()
        if (found := re.match(r'[\[(]\s*(\d+)', str(checkpoint.settings.get(recbole, ''))))
    }
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, **{**model, **shapes}),
        data=dataclasses.replace(config.data, **cores),
    ), [name for name in _NOT_IN_SHAPES if name not in said]


def import_released(checkpoint: Checkpoint, config: RunConfig, data: str, workdir: Path) -> SequenceDataset:
    """Write a saved model with the checkpoint's weights, which `evaluate` and `recommend` open; returns its data.

    data: the log that it was trained on, in any form that trainings read; row i of the item table is the item that is
    the i-th to appear in it, as RecBole counts. UserError where the log has another number of items, where the weights
    do not fit the settings, or where something lies in workdir.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f'{workdir} holds something already, and an import writes into a new folder: name another one')
    rows = len(checkpoint.weights[TABLE])
    source = find_source('interactions', data)
    dataset = build_sequences(
        source.read(), config.data, name=source.name, fingerprint=fingerprint(source, config.data)
    )
    if dataset.num_items + 1 != rows:
        raise UserError(
            f'{data} has {dataset.num_items:,} items that occur at least {config.data.item_core} times, with users of '
            f'at least {config.data.user_core}, and the checkpoint has {rows - 1:,}: give the log that it was trained '
            'on, or set data.min_user_interactions and data.min_item_interactions as its training did'
        )
    params = to_params(checkpoint.weights)
    like = jax.eval_shape(lambda: init_network(config.model, dataset.num_items, 0)[1])
    _check_fits(params, like)
    save_model(workdir, config, dataset, params, step=0, best_epoch=0)
    return dataset


def _check_fits(params: dict, like: dict) -> None:
    found, wanted = (
        {jax.tree_util.keystr(key, simple=True, separator='.'): tuple(leaf.shape) for key, leaf in
         jax.tree_util.tree_leaves_with_path(tree)} for tree in (params, like)
    )
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f'the checkpoint does not fit its settings: {name} is {found.get(name) or "missing"} in it and '
                f'{wanted.get(name) or "unknown"} in the network'
            )
