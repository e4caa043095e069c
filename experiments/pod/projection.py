"""Seconds that a step takes at least, at a chip's published rates."""
from typing import NamedTuple

from experiments.compiled.collectives import Collective
from experiments.pod.chips import Chip, ring_bytes_per_second


class Projection(NamedTuple):
    """Seconds a step. compute: matrix products at the peak of the matrix unit. hbm: bytes at memory bandwidth. ici:
    collectives as rings over the links of their axes. All rates are peaks, so real steps take longer.
    """

    compute: float
    hbm: float
    ici: float

    @property
    def overlapped(self) -> float:
        """If the three go on at the same time."""
        return max(self)

    @property
    def in_turn(self) -> float:
        """If they wait for one another."""
        return sum(self)


def project(
    chip: Chip, mxu_flops: float, hbm_bytes: float, found: list[Collective], coordinates: list[tuple[int, ...]]
) -> Projection:
    """mxu_flops, hbm_bytes: a step, a chip. coordinates: of each device in the torus, in the program's order."""
    return Projection(
        mxu_flops / chip.matmul_flops, hbm_bytes / chip.hbm_bytes_per_second,
        sum(seconds(chip, c, coordinates) for c in found),
    )


def seconds(chip: Chip, collective: Collective, coordinates: list[tuple[int, ...]]) -> float:
    """What a step spends in one kind of collective."""
    if len(collective.group) < 2:
        return 0.0
    return collective.wire_bytes / ring_bytes_per_second(chip, [coordinates[n] for n in collective.group])
