"""The network's encoder as a StableHLO program that runs without this package, for any number of tokens."""
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from pallas_kernels.ssd.api import XLA_TILING
from pallas_kernels.target import tracing_for
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import first_line
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import Network, init_network

PLATFORMS = 'cpu', 'cuda', 'tpu'  # as jax.export calls them
# All programs are traced as for a CPU: what runs elsewhere is then what tests can run, and its sums are loops, whose
# number of rounds need not be known. (On GPUs and TPUs they would be doubled, for which it must be.)
_TRACED_FOR = 'cpu'
# The tokens are filled up to a multiple of a step of the scan.
TOKEN_MULTIPLE = math.prod(XLA_TILING[_TRACED_FOR])


def exported_network(settings: Any, num_items: int) -> tuple[Network, dict]:
    """The network that is exported, and its parameters as jax.ShapeDtypeStruct.

    It scans by XLA's operations and computes in float32 where the settings do not say float64, so that it is the same
    on every platform. ConfigError where it reads what histories of items do not hold.
    """
    if isinstance(settings, ModelConfig):
        dtype = 'float64' if settings.dtype == 'float64' else 'float32'
        settings = dataclasses.replace(settings, dtype=dtype, ssd_implementation='xla')
    elif features := features_read(settings):
        raise ConfigError(
            f'model.name={settings.name} reads {", ".join(features)} beside the items, and an exported encoder reads '
            'items alone: answer with the run itself'
        )
    networks = []

    def create() -> dict:
        network, params = init_network(settings, num_items, 0)
        networks.append(network)
        return params

    params = jax.eval_shape(create)
    return networks[0], params


def named(params: dict) -> dict[str, np.ndarray]:
    """Parameters as arrays by name, 'layers.0.norm.scale', in float32 or wider."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'):
            np.ascontiguousarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)) for path, leaf in leaves
    }


def export_encoder(network: Network, params: dict, platform: str) -> bytes:
    """The serialized program encode(weights, items, lengths) -> readouts [n, D] for 'cpu', 'cuda' or 'tpu'.

    weights: the parameters by name (`named`). items: int32 [tokens], histories end to end, then zeros; tokens is any
    multiple of TOKEN_MULTIPLE. lengths: int32 [n], of the histories and then of slots without one, 0.
    params: whole arrays. ConfigError where the network cannot be traced without knowing the number of tokens.
    """
    arrays = named(params)
    blocks, histories = export.symbolic_shape('b, n')
    shapes = (
        {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()},
        jax.ShapeDtypeStruct((TOKEN_MULTIPLE * blocks,), jnp.int32),
        jax.ShapeDtypeStruct((histories,), jnp.int32),
    )
    with tracing_for(_TRACED_FOR):
        try:
            program = export.export(jax.jit(_encoder(network, params)), platforms=[platform])(*shapes)
        except Exception as error:  # Of whatever kind a network of the user's own raises.
            raise ConfigError(
                f'this network cannot be exported for {platform} ({first_line(error)}): its readout must work for any '
                'number of tokens and histories'
            ) from error
    return bytes(program.serialize())


def _encoder(network: Network, params: dict) -> Callable[..., jax.Array]:
    names, structure = list(named(params)), jax.tree.structure(params)

    def encode(weights: dict[str, jax.Array], items: jax.Array, lengths: jax.Array) -> jax.Array:
        model = network.bind(jax.tree.unflatten(structure, [weights[name] for name in names]))
        batch = _one_row(items, lengths)
        return model.readout(batch.items, Layout.of(batch))[0]

    return encode


def _one_row(items: jax.Array, lengths: jax.Array) -> PackedBatch:
    """Histories [tokens] end to end as a packed row."""
    token, ends = jnp.arange(items.shape[0], dtype=jnp.int32), jnp.cumsum(lengths, dtype=jnp.int32)
    segment = 1 + jnp.cumsum(jnp.zeros_like(token).at[ends].add(1, mode='drop'), dtype=jnp.int32)
    return PackedBatch(
        items=items[None], segment_ids=jnp.where(token < ends[-1], segment, 0)[None],
        starts=jnp.where(lengths > 0, ends - lengths, 0)[None], lengths=lengths[None],
        targets=jnp.zeros_like(lengths)[None], example_ids=jnp.zeros_like(lengths)[None],
    )
