"""The least time that a step can take at the published rates of a chip."""
from typing import NamedTuple

from experiments.compiled.collectives import Collective
from experiments.pod.chips import Chip, ring_bytes_per_second


class Projection(NamedTuple):
    """Seconds per step; all rates are peak rates, so real steps take longer.

    compute: the matrix products at the peak rate of the matrix unit. hbm: the bytes moved at the memory bandwidth.
    ici: the collectives, as rings over the links of their axes.
    """

    compute: float
    hbm: float
    ici: float

    @property
    def overlapped(self) -> float:
        """The seconds per step if the three parts overlap completely."""
        return max(self)

    @property
    def in_turn(self) -> float:
        """The seconds per step if the three parts run one after another."""
        return sum(self)


def project(
    chip: Chip, mxu_flops: float, hbm_bytes: float, found: list[Collective], coordinates: list[tuple[int, ...]]
) -> Projection:
    """The projected time of a step.

    mxu_flops, hbm_bytes: operations and bytes per step and chip. found: the collectives of a step. coordinates: the
    position of each device in the torus, in the order of the program's device numbers.
    """
    return Projection(
        mxu_flops / chip.matmul_flops, hbm_bytes / chip.hbm_bytes_per_second,
        sum(seconds(chip, c, coordinates) for c in found),
    )


def seconds(chip: Chip, collective: Collective, coordinates: list[tuple[int, ...]]) -> float:
    """The seconds that a step spends in one collective; coordinates as in project."""
    if len(collective.group) < 2:
        return 0.0
    return collective.wire_bytes / ring_bytes_per_second(chip, [coordinates[n] for n in collective.group])
