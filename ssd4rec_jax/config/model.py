"""Settings of an SSD4Rec network."""
import dataclasses
import math

from ssd4rec_jax.errors import ConfigError

BIDIRECTIONAL = ('all', 'last')
BACKWARD_ORDERS = ('reversed', 'aligned')
TIMES = ('none', 'dt', 'decay_and_dt')
TIME_GAP = 'time gap'  # the event feature of networks that read when an interaction came
SCORES = ('dot', 'cosine')
TABLE_DTYPES = ('float32', 'bfloat16')
DTYPES = ('auto', 'float32', 'bfloat16', 'float64')
_CHOICES = {
    'bidirectional': BIDIRECTIONAL, 'backward_order': BACKWARD_ORDERS, 'time': TIMES, 'scores': SCORES,
    'dtype': DTYPES, 'table_dtype': TABLE_DTYPES,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The sizes and rates of SSD4Rec; the defaults are the published ones (paper section 4, released code).

    name: 'ssd4rec'; another name selects the settings of another network (see ssd4rec_jax.config.plugs).
    hidden_size: the width D of embeddings and hidden states.
    members: the number of networks of this size that learn side by side, each with a part of its own of every item's
      vector and by a loss of its own; the mean of their scores ranks.
    num_layers: the number of Bi-SSD layers.
    d_state: the size N of the state of each channel, as in Mamba-2.
    d_conv: the number of taps of the short convolution, as in Mamba-2.
    expand: the width of the mixer's inner stream as a multiple of hidden_size, as in Mamba-2.
    headdim: the number P of channels of each head, as in Mamba-2; it divides expand * hidden_size.
    ngroups: the number of groups of heads that share B and C, as in Mamba-2.
    beta: the weight of the backward direction; with 0 this direction is not computed at all.
    bidirectional: the layers that have the backward direction: 'all', as published, or the 'last' one alone, with which
      train.objective=one_pass is exact at any depth.
    dropout_prob: the rate of every dropout.
    feed_forward: whether each layer ends with a position-wise feed-forward network, as published.
    norm_embedding: whether dropout and LayerNorm are applied to the item embedding.
    backward_order: 'reversed' gives position t of a history the backward output of the mirrored position, as the
      released code does; 'aligned' flips the output back, as the paper draws it.
    scores: how a readout and an item's vector make a score: 'dot', their dot product, as published; 'cosine', their
      cosine divided by temperature.
    temperature: with 'cosine', what the cosine is divided by.
    seen_bias: whether the score of an item that the history holds gets a learned bias, by how long ago and how often it
      was seen; train.seen_learning_rate is its learning rate.
    follower_weight: above 0, items that often followed the newest items of a history in training rank higher, by this
      weight (see ssd4rec_jax.data.followers). It does not touch training.
    fit_followers: whether the weight of followers is chosen by validation once the network is trained, among
      follower_weight and some others (see ssd4rec_jax.train.fitted_followers). Until then follower_weight is taken;
      with false it stays.
    time: what the gap between two interactions of a user does, beside their order: 'none', as published; 'dt' scales
      the step dt of each head; 'decay_and_dt' scales the decay and the input of each head apart. The scales are learned
      and stay between 1/2 and 2.
    dtype: the dtype of activations and matrix products; parameters stay float32. 'auto' means bfloat16 on GPUs and
      TPUs and float32 on CPUs. 'float64' is for parity checks and needs JAX_ENABLE_X64.
    table_dtype: the dtype in which the item table is stored. 'bfloat16' halves its memory and needs train.loss=sampled;
      each update is then rounded up or down at random, so that small updates are not lost.
    ssd_implementation: the implementation of pallas_kernels.ssd_scan; 'auto' takes the first one that supports the
      platform, dtype and shape. 'pallas_gpu' names kernels for what surrounds the scan on a GPU too, and
      'pallas_gpu_fused' for nearly all of a layer; no GPU has trained with the latter yet.
    """

    name: str = 'ssd4rec'
    hidden_size: int = 256
    members: int = 1
    num_layers: int = 2
    d_state: int = 64
    d_conv: int = 4
    expand: int = 2
    headdim: int = 16
    ngroups: int = 1
    beta: float = 0.1
    bidirectional: str = 'all'
    dropout_prob: float = 0.2
    feed_forward: bool = True
    norm_embedding: bool = True
    backward_order: str = 'reversed'
    scores: str = 'dot'
    temperature: float = 0.05
    seen_bias: bool = False
    follower_weight: float = 0.0
    fit_followers: bool = False
    time: str = 'none'
    dtype: str = 'auto'
    table_dtype: str = 'float32'
    ssd_implementation: str = 'auto'

    def __post_init__(self):
        for name in ('hidden_size', 'members', 'num_layers', 'd_state', 'd_conv', 'expand', 'headdim', 'ngroups'):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f'model.{name}={value} must be at least 1')
        check_headdim(self.headdim, self.d_inner)
        if self.num_heads % self.ngroups:
            raise ConfigError(
                f'model.ngroups={self.ngroups} does not divide the {self.num_heads} heads '
                f'(expand * hidden_size / headdim); choose a divisor of {self.num_heads}'
            )
        if not 0.0 <= self.dropout_prob < 1.0:
            raise ConfigError(f'model.dropout_prob={self.dropout_prob} must be in [0, 1)')
        if not 0 <= self.follower_weight < math.inf:
            raise ConfigError(f'model.follower_weight={self.follower_weight} must not be negative, and finite')
        check_temperature(self.temperature)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f'model.{name}={getattr(self, name)!r} must be one of {", ".join(known)}')

    def of_layer(self, number: int) -> 'ModelConfig':
        """The settings of one layer, counted from 0: beta is 0 where the layer has no backward direction."""
        if self.bidirectional == 'all' or number == self.num_layers - 1:
            return self
        return dataclasses.replace(self, beta=0.0)

    @property
    def prefixes_share_a_pass(self) -> bool:
        """Whether one pass over a history gives the readout of each of its prefixes.

        This is not so where a backward direction below the last layer makes every token depend on the prefix's end.
        """
        return self.num_layers == 1 or self.beta == 0 or self.bidirectional == 'last'

    @property
    def features(self) -> str:
        """The event features that the network reads."""
        return '' if self.time == 'none' else TIME_GAP

    @property
    def readout_size(self) -> int:
        """The width of readouts and of the item table: hidden_size for each member."""
        return self.members * self.hidden_size

    @property
    def d_inner(self) -> int:
        """The width of the mixer's inner stream, heads * headdim."""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        """The number of SSD heads."""
        return self.d_inner // self.headdim

    @property
    def conv_width(self) -> int:
        """The number of channels that pass through the short convolution: those of x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state

    @property
    def in_proj_width(self) -> int:
        """The number of columns of the input projection: those of z, x, B, C and dt."""
        return self.d_inner + self.conv_width + self.num_heads


def check_temperature(temperature: float) -> None:
    """Raises ConfigError where scores cannot be divided by it."""
    if not temperature > 0:
        raise ConfigError(f'model.temperature={temperature} must be positive')


def check_headdim(headdim: int, d_inner: int) -> None:
    """Raises ConfigError where the inner stream cannot be split into heads of this width."""
    if d_inner % headdim:
        raise ConfigError(
            f'model.headdim={headdim} does not divide expand * hidden_size = {d_inner}; choose a divisor of {d_inner}'
        )
