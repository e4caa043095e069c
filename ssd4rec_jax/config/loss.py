"""Settings of the losses."""
import dataclasses

from ssd4rec_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a loss without settings."""


@dataclasses.dataclass(frozen=True)
class FullSoftmax:
    """The settings of train.loss=full.

    label_smoothing: the share of each target's probability that is spread evenly over the catalogue; 0 as published.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f'loss.label_smoothing={self.label_smoothing} must be in [0, 1)')


@dataclasses.dataclass(frozen=True)
class UniformSoftmax:
    """The settings of train.loss=uniform.

    negatives: for how many negatives of its own the step's sample counts with each target, 0: as many as it has. A
      larger sample then gives the same sum over negatives on average, with less noise.
    """

    negatives: int = 0

    def __post_init__(self) -> None:
        _check_negatives(self.negatives)


@dataclasses.dataclass(frozen=True)
class GBCE:
    """The settings of train.loss=gbce.

    t: how far scores are calibrated: 0 gives binary cross-entropy, and 1 makes up for the sampling of negatives.
    negatives: as in UniformSoftmax.
    """

    t: float = 0.75
    negatives: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ConfigError(f'loss.t={self.t} must be between 0 and 1')
        _check_negatives(self.negatives)


def _check_negatives(negatives: int) -> None:
    if negatives < 0:
        raise ConfigError(f'loss.negatives={negatives} must be 0 or more')
