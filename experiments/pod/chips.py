"""The published rates of a chip and of the links between chips."""
from typing import NamedTuple

from ssd4rec_jax.errors import ConfigError


class Chip(NamedTuple):
    """The published rates of one chip.

    matmul_flops: FLOP/s of bf16 matrix products. hbm_bytes_per_second: the bandwidth of its main memory.
    ici_bytes_per_second: the bytes per second that it sends to its neighbours over all links of all axes of the torus
      together, in one direction. (It can receive as much at the same time; newer pages give the 'bidirectional' sum,
      which is twice this figure.)
    usable_hbm: the bytes that the compiler gives to a program, according to its out-of-memory errors (libtpu 0.0.42).
    axes: the number of axes of the torus. wraps: the length from which on the two ends of an axis are connected.
    """

    name: str
    matmul_flops: float
    hbm_bytes_per_second: float
    ici_bytes_per_second: float
    usable_hbm: int
    axes: int
    wraps: int
    source: str


GIB = 2**30

CHIPS = {
    # 197 TFLOP/s, 819 GB/s, 16 GB, 1,600 Gbit/s (400 GB/s bidirectional); a 2D torus of at most 16 x 16.
    'v5e': Chip('v5e', 197e12, 819e9, 200e9, int(15.75 * GIB), 2, 16, 'cloud.google.com/tpu/docs/v5e'),
    # 918 TFLOP/s, 1,638 GB/s, 32 GB, 800 GB/s bidirectional (earlier pages: 3,584 Gbit/s).
    'v6e': Chip('v6e', 918e12, 1638e9, 400e9, int(31.25 * GIB), 2, 16, 'cloud.google.com/tpu/docs/v6e'),
    # 459 TFLOP/s, 2,765 GB/s, 95 GB, 4,800 Gbit/s (1,200 GB/s bidirectional); a 3D torus of cubes of 4 x 4 x 4.
    'v5p': Chip('v5p', 459e12, 2765e9, 600e9, int(95.74 * GIB), 3, 4, 'cloud.google.com/tpu/docs/v5p'),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as v5e:16x16; ConfigError where its rates are not in CHIPS."""
    name = topology.partition(':')[0]
    if name not in CHIPS:
        raise ConfigError(
            f'--topology={topology}: the published rates of {name!r} are not known here; known: {", ".join(CHIPS)}, '
            'as in v5e:16x16'
        )
    return CHIPS[name]


def ring_bytes_per_second(chip: Chip, coordinates: list[tuple[int, ...]]) -> float:
    """The bytes per second that each chip in the group of a collective can send to the others, at the published rate.

    coordinates: the positions of the group's chips in the torus. The group uses the links of those axes along which its
    chips differ. An axis whose ends are not connected carries only one ring (out on the links of one direction and back
    on those of the other) instead of two, so half of its rate counts.
    """
    per_axis = chip.ici_bytes_per_second / chip.axes
    spans = [len(set(along)) for along in zip(*coordinates, strict=True)]
    return sum(per_axis * (1.0 if n >= chip.wraps else 0.5) for n in spans if n > 1) or per_axis
