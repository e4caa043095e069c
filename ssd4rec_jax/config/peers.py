"""Settings of the networks that SSD4Rec is compared with (ssd4rec_jax.peers); their defaults are the published ones."""
import dataclasses

from ssd4rec_jax.config.model import DTYPES, TIME_GAP, check_headdim, check_temperature
from ssd4rec_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PeerConfig:
    """What the settings of all peers have.

    name: which network it is; ssd4rec_jax/peers has a file of this name.
    hidden_size: the width D of embeddings and readouts.
    num_layers: the number of layers.
    dropout_prob: the rate of every dropout that has no rate of its own.
    dtype: the dtype of activations and matrix products; parameters stay float32. 'auto' means bfloat16 on GPUs and
      TPUs and float32 on CPUs. 'float64' is for parity checks and needs JAX_ENABLE_X64.
    """

    name: str
    hidden_size: int = 64
    num_layers: int = 1
    dropout_prob: float = 0.2
    dtype: str = 'auto'

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ConfigError(f'model.{field.name}={value} must be at least 1')
            if field.name.endswith('dropout_prob') and not 0 <= value < 1:
                raise ConfigError(f'model.{field.name}={value} must be in [0, 1)')
        if self.dtype not in DTYPES:
            raise ConfigError(f'model.dtype={self.dtype!r} must be one of {", ".join(DTYPES)}')

    @property
    def prefixes_share_a_pass(self) -> bool:
        """Whether one pass over a history gives the readout of each of its prefixes: no token reads what follows it."""
        return True


@dataclasses.dataclass(frozen=True)
class GRU4RecConfig(PeerConfig):
    """The settings of GRU4Rec.

    inner_size: the width of the recurrent state.
    """

    name: str = 'gru4rec'
    dropout_prob: float = 0.3
    inner_size: int = 128


@dataclasses.dataclass(frozen=True)
class SASRecConfig(PeerConfig):
    """The settings of SASRec.

    num_heads: the number of attention heads; it divides hidden_size.
    inner_size: the width inside the feed-forward part.
    attention_dropout_prob: the rate of the dropout of attention weights.
    max_length: the number of newest items of a history that are read; each of these places has a learned vector.
    initializer_range: the standard deviation of the vectors of items and places before the first step.
    """

    name: str = 'sasrec'
    num_layers: int = 2
    dropout_prob: float = 0.5
    num_heads: int = 2
    inner_size: int = 256
    attention_dropout_prob: float = 0.5
    max_length: int = 50
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_heads)
        if self.initializer_range <= 0:
            raise ConfigError(f'model.initializer_range={self.initializer_range} must be above 0')


@dataclasses.dataclass(frozen=True)
class BERT4RecConfig(SASRecConfig):
    """The settings of BERT4Rec.

    num_heads, inner_size, attention_dropout_prob, initializer_range: as in SASRec.
    max_length: as in SASRec; the mask token behind a history takes one of the places.
    """

    name: str = 'bert4rec'
    dropout_prob: float = 0.2
    attention_dropout_prob: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2:
            raise ConfigError(f'model.max_length={self.max_length} must be at least 2: an item and the mask token')

    @property
    def prefixes_share_a_pass(self) -> bool:
        """Each item is read with those behind it."""
        return False

    @property
    def offers_cloze(self) -> bool:
        """Whether the network has cloze_readouts, which train.objective=cloze reads."""
        return True


@dataclasses.dataclass(frozen=True)
class CaserConfig(PeerConfig):
    """The settings of Caser.

    num_layers: the number of dense layers between what the filters give and the item space; the paper has one.
    window: the number L of newest items that a readout looks back on.
    horizontal_filters: the number of horizontal filters of each height from 1 to window.
    vertical_filters: the number of vertical filters.
    """

    name: str = 'caser'
    dropout_prob: float = 0.4
    window: int = 10
    horizontal_filters: int = 8
    vertical_filters: int = 4


@dataclasses.dataclass(frozen=True)
class HSTUConfig(PeerConfig):
    """The settings of HSTU.

    num_heads: the number of attention heads; it divides hidden_size.
    temperature: what the cosine of a readout and an item's vector is divided by.
    max_length: the number of newest items of a history that are read; each of these places has a learned vector.
    """

    name: str = 'hstu'
    num_layers: int = 2
    num_heads: int = 1
    temperature: float = 0.05
    max_length: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_size, self.num_heads)
        check_temperature(self.temperature)

    @property
    def features(self) -> str:
        """The event features that the network reads."""
        return TIME_GAP


@dataclasses.dataclass(frozen=True)
class LRURecConfig(PeerConfig):
    """The settings of LRURec.

    mixer_dropout_prob: the rate of the dropout after the recurrence.
    """

    name: str = 'lrurec'
    num_layers: int = 2
    mixer_dropout_prob: float = 0.2


@dataclasses.dataclass(frozen=True)
class Mamba4RecConfig(PeerConfig):
    """The settings of Mamba4Rec.

    d_state: the number N of states of each channel, as in Mamba.
    d_conv: the number of taps of the short convolution, as in Mamba.
    expand: the width of the mixer's inner stream as a multiple of hidden_size, as in Mamba.
    """

    name: str = 'mamba4rec'
    d_state: int = 32
    d_conv: int = 4
    expand: int = 2


@dataclasses.dataclass(frozen=True)
class SIGMAConfig(Mamba4RecConfig):
    """The settings of SIGMA.

    num_kept: the number of newest items of a history that keep their places where the older ones are reversed.
    """

    name: str = 'sigma'
    num_kept: int = 5

    @property
    def prefixes_share_a_pass(self) -> bool:
        """Which items change places depends on where the prefix ends."""
        return False


@dataclasses.dataclass(frozen=True)
class TiM4RecConfig(PeerConfig):
    """The settings of TiM4Rec.

    d_state, d_conv, expand, headdim: as in Mamba-2; headdim divides expand * hidden_size.
    max_length: the number of newest items of a history that are read.
    time_dropout_prob: the rate of the dropout of the gaps in each layer; dropout_prob is that before the first one.
    p2p_residual: whether each gap has its own share of what the next layer reads, or all of a head the same.
    """

    name: str = 'tim4rec'
    num_layers: int = 2
    dropout_prob: float = 0.4
    d_state: int = 32
    d_conv: int = 4
    expand: int = 2
    headdim: int = 32
    max_length: int = 50
    time_dropout_prob: float = 0.0
    p2p_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_headdim(self.headdim, self.d_inner)

    @property
    def prefixes_share_a_pass(self) -> bool:
        """How a gap in time counts depends on all gaps of the history."""
        return False

    @property
    def features(self) -> str:
        """The event features that the network reads."""
        return TIME_GAP

    @property
    def d_inner(self) -> int:
        """The width of the mixer's inner stream."""
        return self.expand * self.hidden_size

    @property
    def num_heads(self) -> int:
        """The number of heads."""
        return self.d_inner // self.headdim


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raises ConfigError where a width cannot be split into that many heads."""
    if hidden_size % num_heads:
        raise ConfigError(
            f'model.num_heads={num_heads} does not divide model.hidden_size={hidden_size}; choose a divisor of it'
        )


# The settings of each peer, by its name.
PEERS: dict[str, type] = {
    'gru4rec': GRU4RecConfig, 'sasrec': SASRecConfig, 'lrurec': LRURecConfig, 'mamba4rec': Mamba4RecConfig,
    'tim4rec': TiM4RecConfig, 'caser': CaserConfig, 'bert4rec': BERT4RecConfig,
    'sigma': SIGMAConfig, 'hstu': HSTUConfig,
}
