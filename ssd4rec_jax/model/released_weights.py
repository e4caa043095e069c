"""Conversion of the released PyTorch model's parameters to our names and layouts."""
import re

import numpy as np

from ssd4rec_jax.errors import CheckpointError

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
