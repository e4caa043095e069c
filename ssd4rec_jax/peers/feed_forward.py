"""The position-wise feed-forward part of a layer, with its residual connection and LayerNorm."""
import jax
from flax import nnx

from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.gelu import gelu
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.peers.causal import Factory


class FeedForward(nnx.Module):
    """LayerNorm(dropout(W2 dropout(gelu(W1 h))) + h), with the exact (erf) gelu; the rate of the inner dropout is its
    own."""

    def __init__(
        self, hidden_size: int, inner_size: int, make: Factory, *, dropout_prob: float, inner_dropout_prob: float,
        epsilon: float,
    ):
        self.dropout_prob, self.inner_dropout_prob = dropout_prob, inner_dropout_prob
        self.w_1 = make.linear(hidden_size, inner_size)
        self.w_2 = make.linear(inner_size, hidden_size)
        self.norm = make.norm(hidden_size, epsilon)

    def __call__(self, h: jax.Array, draws: Draws | None, name: str) -> jax.Array:
        """[rows, tokens, D] -> [rows, tokens, D]. name: what the random draws are named by."""
        inner = dropout(gelu(per_token(self.w_1, h)), self.inner_dropout_prob, draws, f'{name}.inner')
        return per_token(self.norm, dropout(per_token(self.w_2, inner), self.dropout_prob, draws, f'{name}.out') + h)
