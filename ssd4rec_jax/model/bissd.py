"""One Bi-SSD layer: bidirectional mixer, residual connection, LayerNorm, dropout and position-wise FFN."""
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.ssd.gpu import feed_forward as gpu
from pallas_kernels.target import target
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.dense import dot_general, transposed_matmul
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.implementation import named
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import LINEAR_INIT, BidirectionalMamba2, Inputs
from ssd4rec_jax.model.norms import layer_norm
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.prefix_state import MixerState


class FeedForward(nnx.Module):
    """dropout(LayerNorm(W2 dropout(gelu(W1 h)) + h)), with the exact (erf) gelu and biases that start at zero."""

    def __init__(self, config: ModelConfig, **kwargs):
        self.dropout_prob = config.dropout_prob
        self.fused = named(config, 'pallas_gpu_fused')
        linear = dict(kernel_init=LINEAR_INIT, dot_general=dot_general, **kwargs)
        self.w_1 = nnx.Linear(config.hidden_size, 4 * config.hidden_size, **linear)
        self.w_2 = nnx.Linear(4 * config.hidden_size, config.hidden_size, **linear)
        self.norm = layer_norm(config, **kwargs)

    def __call__(self, h: jax.Array, draws: Draws | None, name: str) -> jax.Array:
        if self.fused and gpu.why_not_feed_forward(h.dtype, h.shape[-1], self.w_1.out_features) is None:
            how = gpu.FeedForward(self.dropout_prob, self.norm.epsilon, transposed_matmul, target().interpret)
            params: list[Any] = [
                self.w_1.kernel, self.w_1.bias, self.w_2.kernel, self.w_2.bias, self.norm.scale, self.norm.bias
            ]
            parameters = gpu.Parameters(*(param[...].astype(jnp.float32) for param in params))
            keys = None if draws is None else (draws.keys(f'{name}.inner'), draws.keys(f'{name}.out'))
            return gpu.feed_forward(how, h, parameters, keys)
        inner = dropout(gelu(per_token(self.w_1, h)), self.dropout_prob, draws, f'{name}.inner')
        return self.norm.residual(per_token(self.w_2, inner), h, self.dropout_prob, draws, f'{name}.out')


class BiSSDLayer(nnx.Module):
    """h = dropout(LayerNorm(f + beta * b + u)); out = FFN(h) (paper section 3, released code).

    f and b are the mixer's outputs in the forward and backward direction, u is the layer's input. Without
    config.feed_forward the output is h. In every method
    `name` identifies the layer, so that no two layers share random draws; draws=None switches dropout off.
    """

    def __init__(self, config: ModelConfig, **kwargs):
        self.dropout_prob = config.dropout_prob
        self.mixer = BidirectionalMamba2(config, **kwargs)
        self.norm = layer_norm(config, **kwargs)
        self.ffn = FeedForward(config, **kwargs) if config.feed_forward else None

    def __call__(self, inputs: Inputs, layout: Layout, draws: Draws | None, name: str) -> jax.Array:
        """The layer's output at every token, [rows, tokens, D]."""
        return self._after_mixer(self.mixer(inputs, layout), inputs.at(), draws, name)

    def readout(self, inputs: Inputs, layout: Layout, draws: Draws | None, name: str) -> jax.Array:
        """The layer's output at each history's last token only, [rows, segments, D]; arbitrary in empty slots."""
        draws = None if draws is None else draws.at(layout.ends)
        return self._after_mixer(self.mixer.readout(inputs, layout), inputs.at(layout.ends), draws, name)

    def prefix_readouts(self, inputs: Inputs, layout: Layout, draws: Draws | None, name: str) -> jax.Array:
        """The `readout` of the prefix that ends at each token, for all tokens in one pass: [rows, tokens, D]."""
        return self._after_mixer(self.mixer.prefix_readouts(inputs, layout), inputs.at(), draws, name)

    def prefix_step(
        self, inputs: Inputs, gaps: jax.Array, number: jax.Array, state: MixerState
    ) -> tuple[jax.Array, MixerState]:
        """`prefix_readouts` at one more token of each history, without dropout: ([n, 1, D], the state after it).

        Arguments as in BidirectionalMamba2.prefix_step.
        """
        mixed, state = self.mixer.prefix_step(inputs, gaps, number, state)
        return self._after_mixer(mixed, inputs.at(), None, ''), state

    def _after_mixer(self, mixed, u, draws, name):
        h = self.norm.residual(mixed, u, self.dropout_prob, draws, f'{name}.mixer')
        return h if self.ffn is None else self.ffn(h, draws, f'{name}.ffn')
