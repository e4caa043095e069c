"""Conversion of the released PyTorch model's parameters to our names and layouts, and back."""
import functools
import operator
import re
from typing import Any

import numpy as np

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.errors import CheckpointError, ConfigError

# The path in our parameter dict for each PyTorch name, within a layer and at the top level.
_LAYER_NAMES = {
    'forward_ssd.dt_bias': ('mixer', 'dt_bias'),
    'forward_ssd.A_log': ('mixer', 'A_log'),
    'forward_ssd.D': ('mixer', 'D_skip'),
    'forward_ssd.in_proj.weight': ('mixer', 'in_proj', 'kernel'),
    'forward_ssd.conv1d.weight': ('mixer', 'conv_kernel'),
    'forward_ssd.conv1d.bias': ('mixer', 'conv_bias'),
    'forward_ssd.norm.weight': ('mixer', 'norm', 'scale'),
    'forward_ssd.out_proj.weight': ('mixer', 'out_proj', 'kernel'),
    'LayerNorm.weight': ('norm', 'scale'),
    'LayerNorm.bias': ('norm', 'bias'),
    'ffn.w_1.weight': ('ffn', 'w_1', 'kernel'),
    'ffn.w_1.bias': ('ffn', 'w_1', 'bias'),
    'ffn.w_2.weight': ('ffn', 'w_2', 'kernel'),
    'ffn.w_2.bias': ('ffn', 'w_2', 'bias'),
    'ffn.LayerNorm.weight': ('ffn', 'norm', 'scale'),
    'ffn.LayerNorm.bias': ('ffn', 'norm', 'bias'),
}
_TOP_NAMES = {
    'item_embedding.weight': ('item_embedding',),
    'LayerNorm.weight': ('norm', 'scale'),
    'LayerNorm.bias': ('norm', 'bias'),
}
_LAYER = re.compile(r'BiSSD_layers\.(\d+)\.(.+)')


def path_of(name: str) -> tuple:
    """The path in our parameter dict of the parameter that PyTorch calls `name`; CheckpointError if it is unknown."""
    if match := _LAYER.fullmatch(name):
        if match[2] in _LAYER_NAMES:
            return ('layers', int(match[1]), *_LAYER_NAMES[match[2]])
    elif name in _TOP_NAMES:
        return _TOP_NAMES[name]
    raise CheckpointError(f'the released model has no parameter named {name!r}')


def from_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Our layout of the array that PyTorch calls `name`.

    Weights of linear layers are transposed; a conv1d weight [channels, 1, width] becomes [width, channels].
    """
    if name.endswith('conv1d.weight'):
        return array[:, 0, :].T
    return array.T if re.search(r'(in_proj|out_proj|w_1|w_2)\.weight$', name) else array


def to_params(torch_params: dict[str, np.ndarray]) -> dict:
    """Our nested parameter dict, made from arrays with PyTorch names and layouts; dtypes are kept."""
    params: dict = {}
    for name, array in torch_params.items():
        *parents, leaf = path_of(name)
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = from_torch_layout(name, array)
    return params


def to_torch_params(params: dict, config: ModelConfig) -> dict[str, np.ndarray]:
    """The inverse of to_params: whole arrays by their PyTorch names and in PyTorch's layouts.

    Raises ConfigError where the released network would compute something else from these parameters.
    """
    if obstacle := _not_released(config):
        raise ConfigError(f'the released PyTorch network cannot hold a model with {obstacle}')
    names = [f'BiSSD_layers.{number}.{name}' for number in range(config.num_layers) for name in _LAYER_NAMES]
    return {name: _to_torch_layout(name, np.asarray(_leaf(params, path_of(name)))) for name in (*_TOP_NAMES, *names)}


def _leaf(params: Any, path: tuple) -> np.ndarray:
    return functools.reduce(operator.getitem, path, params)


def _to_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    return array.T[:, None] if name.endswith('conv1d.weight') else from_torch_layout(name, array)


def _not_released(config: ModelConfig) -> str | None:
    """The setting that the released network does not have, in words; None where there is none."""
    if config.beta and config.num_layers > 1 and config.bidirectional != 'all':
        return f'model.bidirectional={config.bidirectional}: its layers all read in both directions'
    if config.beta and config.backward_order != 'reversed':
        return f'model.backward_order={config.backward_order}: it leaves the backward direction in reversed order'
    if config.members != 1:
        return f'model.members={config.members}: it is a single one'
    if config.ngroups != 1:
        return f'model.ngroups={config.ngroups}: it has one group'
    if config.scores != 'dot':
        return f'model.scores={config.scores}: it scores by dot products'
    if not config.feed_forward:
        return 'model.feed_forward=False: each of its layers has one'
    if config.seen_bias:
        return 'model.seen_bias: it has no such parameters'
    if config.follower_weight:
        return f'model.follower_weight={config.follower_weight}: it ranks by its own scores alone'
    if config.fit_followers:
        return 'model.fit_followers: it ranks by its own scores alone'
    if config.time != 'none':
        return f'model.time={config.time}: it reads no times'
    return None
