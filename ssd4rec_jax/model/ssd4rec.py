"""SSD4Rec: reads item histories in packed rows and gives one hidden state per history, to score the items with."""
import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from pallas_kernels import take_rows
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.bissd import BiSSDLayer
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.dtypes import compute_dtype
from ssd4rec_jax.model.inputs import ItemInputs, ProjectedItems, TokenInputs
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import Inputs
from ssd4rec_jax.model.norms import layer_norm
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.prefix_state import MixerState
from ssd4rec_jax.model.seen import SeenBias
from ssd4rec_jax.model.table_init import init_table

MAX_PROJECTED = 2**28  # The largest number of elements of a projected item table: 1 GiB in float32.


class Encoder(nnx.Module):
    """All of the released SSD4Rec network but its item table (paper sections 3.2 to 3.5).

    `embedding` is the item table that a call reads items from, [items + 1, D]. Parameters are float32 (float64 with
    dtype float64), and activations have config.dtype. The parameters of the embedding's LayerNorm exist even without
    norm_embedding, as in the released code.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        dtype = compute_dtype(config.dtype)
        modules = dict(dtype=dtype, param_dtype=parameter_dtype(config), rngs=rngs)
        self.config = config
        self.dtype = dtype
        self.norm = layer_norm(config, **modules)
        self.layers = nnx.List([BiSSDLayer(config.of_layer(k), **modules) for k in range(config.num_layers)])

    def read(
        self, embedding: jax.Array, items: jax.Array, layout: Layout, draws: Draws | None,
        table: ProjectedItems | None = None,
    ) -> jax.Array:
        """The hidden state at each history's last item, [rows, segments, D]; arbitrary in empty slots.

        items: int32 [rows, tokens]. draws: None means no dropout. table: the result of `project`, where a caller with
        many batches has computed it once. The last layer is computed only at the tokens that are read.
        """
        inputs = self._before_last(embedding, items, layout, draws, table)
        return self._to_score(self.layers[-1].readout(inputs, layout, draws, self._last_name))

    def read_prefixes(
        self, embedding: jax.Array, items: jax.Array, layout: Layout, draws: Draws | None
    ) -> jax.Array:
        """What `read` gives for every prefix of every history, in one pass: [rows, tokens, D].

        The entry of a token belongs to the prefix that ends at it. Raises ValueError unless
        config.prefixes_share_a_pass, where the result is exact. The prefixes of a history share the random draws before
        the last layer's mixer; the draws after it are separate for each token.
        """
        self._check_that_prefixes_share_a_pass()
        inputs = self._before_last(embedding, items, layout, draws, None)
        return self._to_score(self.layers[-1].prefix_readouts(inputs, layout, draws, self._last_name))

    def no_history(self, users: int) -> tuple[MixerState, ...]:
        """The state of `step` before the first item of each user's history."""
        return tuple(layer.mixer.no_tokens(users) for layer in self.layers)

    def step(
        self, embedding: jax.Array, items: jax.Array, gaps: jax.Array, number: jax.Array,
        state: tuple[MixerState, ...],
    ) -> tuple[jax.Array, tuple[MixerState, ...]]:
        """What `read` gives for histories that grow by one item: ([n, D], the state after it).

        items: int32 [n]. gaps: float32 [n], as in Layout.gaps. number: int32 [n], how many items came before. state:
        what these left. The cost does not depend on their number. Raises ValueError unless
        config.prefixes_share_a_pass.
        """
        self._check_that_prefixes_share_a_pass()
        inputs = self._first_inputs(embedding, items[:, None], None, None)
        gaps, after = jnp.where(number > 0, gaps, 0), []
        for layer, before in zip(self.layers, state, strict=True):
            hidden, own = layer.prefix_step(inputs, gaps, number, before)
            inputs = TokenInputs(hidden)
            after.append(own)
        return self._to_score(hidden)[:, 0], tuple(after)

    def item_vectors(self, rows: jax.Array) -> jax.Array:
        """What readouts are multiplied with to score the items of these rows of the item table: [n, D]."""
        return rows if self.config.scores == 'dot' else of_length_one(rows)

    def project(self, embedding: jax.Array) -> ProjectedItems:
        """The first layer's input for every item and its projection; valid where no dropout precedes that layer."""
        vectors = embedding.astype(self.dtype)
        if self.config.norm_embedding:
            vectors = per_token(self.norm, vectors)
        return ProjectedItems(vectors, self.layers[0].mixer.in_proj(vectors))

    def projecting_is_less_work(self, rows: int, tokens: int) -> bool:
        """Whether projecting all rows of the item table takes less work than projecting `tokens` tokens, and little
        memory.

        Not where the number of tokens is a symbol, as in a program that is exported for any number of them.
        """
        if export.is_symbolic_dim(tokens):
            return False
        return rows < tokens and rows * self.config.in_proj_width <= MAX_PROJECTED

    def _to_score(self, hidden: jax.Array) -> jax.Array:
        """The readouts [..., D] whose dot products with item_vectors are the scores."""
        if self.config.scores == 'dot':
            return hidden
        return of_length_one(hidden) / jnp.asarray(self.config.temperature, hidden.dtype)

    def _check_that_prefixes_share_a_pass(self) -> None:
        if not self.config.prefixes_share_a_pass:
            raise ValueError("prefixes share a pass only with one layer, bidirectional = 'last' or beta = 0")

    @property
    def _last_name(self) -> str:
        return f'layer{len(self.layers) - 1}'

    def _before_last(self, embedding, items, layout, draws, table) -> Inputs:
        """The inputs of the last layer."""
        chex.assert_rank(items, 2)
        chex.assert_equal_shape([items, layout.segment_ids])
        inputs = self._first_inputs(embedding, items, draws, table)
        for k, layer in enumerate(self.layers[:-1]):
            inputs = TokenInputs(layer(inputs, layout, draws, f'layer{k}'))
        return inputs

    def _first_inputs(self, embedding, items, draws, table) -> Inputs:
        config = self.config
        drops = draws is not None and config.norm_embedding and config.dropout_prob > 0
        if table is None and not drops and self.projecting_is_less_work(len(embedding), items.size):
            table = self.project(embedding)
        if table is not None:
            return ItemInputs(table, items)
        h = take_rows(embedding, items).astype(self.dtype)
        if config.norm_embedding:
            h = self.norm.residual(h, None, config.dropout_prob, draws, 'embedding', drops_first=True)
        return TokenInputs(h)


class SSD4Rec(Encoder):
    """The released SSD4Rec network.

    num_items: the number of items in the catalogue. The table has one more row, row 0, for the mask token and padding;
    its dtype is config.table_dtype.
    """

    def __init__(self, config: ModelConfig, num_items: int, *, rngs: nnx.Rngs):
        self.item_embedding = item_table(config, num_items, rngs)
        super().__init__(config, rngs=rngs)
        if config.seen_bias:
            self.seen = SeenBias(parameter_dtype(config))

    def readout(
        self, items: jax.Array, layout: Layout, draws: Draws | None = None, table: ProjectedItems | None = None
    ) -> jax.Array:
        """The hidden state at each history's last item, as `read` describes it: [rows, segments, D]."""
        return self.read(self.item_embedding[...], items, layout, draws, table)

    def prefix_readouts(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The `readout` of every prefix of every history, as `read_prefixes` describes it: [rows, tokens, D]."""
        return self.read_prefixes(self.item_embedding[...], items, layout, draws)

    def prefix_step(
        self, items: jax.Array, gaps: jax.Array, number: jax.Array, state: tuple[MixerState, ...]
    ) -> tuple[jax.Array, tuple[MixerState, ...]]:
        """The `readout` of histories that grow by one item, as `step` describes it: ([n, D], the state after it)."""
        return self.step(self.item_embedding[...], items, gaps, number, state)

    def table_is_less_work(self, tokens: int) -> bool:
        """Whether projecting the item table takes less work than projecting `tokens` tokens, and little memory."""
        return self.projecting_is_less_work(self.item_embedding.shape[0], tokens)

    def item_table(self) -> ProjectedItems:
        """The first layer's input for every item and its projection; valid where no dropout precedes that layer."""
        return self.project(self.item_embedding[...])


def item_table(config: ModelConfig, num_items: int, rngs: nnx.Rngs) -> nnx.Param:
    """A new item table [num_items + 1, config.readout_size]."""
    dtype = jnp.dtype(jnp.bfloat16) if config.table_dtype == 'bfloat16' else parameter_dtype(config)
    return nnx.Param(init_table(rngs.params(), (num_items + 1, config.readout_size), dtype))


def parameter_dtype(config: ModelConfig) -> jnp.dtype:
    """The dtype of all parameters but the item table: float32, or float64 with dtype float64."""
    return jnp.promote_types(compute_dtype(config.dtype), jnp.float32)


def of_length_one(x: jax.Array) -> jax.Array:
    """x [..., D] divided by its Euclidean norm, which is computed in float32 or wider; zeros stay zeros."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.sum(wide**2, axis=-1, keepdims=True) + 1e-12)).astype(x.dtype)
