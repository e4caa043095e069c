"""The collectives of a compiled program: how often they run, between which devices, and with how many bytes."""
import dataclasses
import math
import re

import numpy as np

from pallas_kernels.compiled.hlo import Module, goes_on_in_fusions, shape_bytes

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
         'collective-broadcast')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same devices.

    kind: the HLO name without '-start'.
    group: the numbers of the devices in the first group; for a collective-permute, all devices that it involves.
    count: how often a step runs such a collective.
    payload_bytes: the bytes of the full arrays, per step and chip: what an all-reduce or a reduce-scatter reduces, what
      an all-gather produces, what an all-to-all or a permute moves.
    wire_bytes: the bytes that each chip sends per step if the group is a ring.
    in_unknown_loop: whether it lies in a loop whose number of rounds the text does not tell; one round is counted.
    """

    kind: str
    group: tuple[int, ...]
    count: int
    payload_bytes: int
    wire_bytes: float
    in_unknown_loop: bool = False


def collectives(module: Module, devices: int) -> list[Collective]:
    """The collectives of a program, those of one kind and group added up, in descending order of wire_bytes.

    devices: the number of devices of the program. Collectives within a single device are left out. An asynchronous
    collective is counted where it starts, and one that a TPU spreads over several fusions is counted once. A collective
    in a loop is counted once per round.
    """
    found: dict[tuple, Collective] = {}
    spread = set()
    for instruction, within, rounds, unknown in module.executed():
        kind = instruction.opcode.removesuffix('-start')
        if kind not in KINDS:
            continue
        if goes_on_in_fusions(instruction):
            name = re.findall(r'(?:channel_id=|chain_id=")\d+', instruction.attributes)
            if (kind, *name) in spread:
                continue
            spread.add((kind, *name))
        group = replica_groups(instruction.attributes, devices)[0]
        n = len(group)
        if n < 2:
            continue
        # The operands are counted, because the value of a -start is a tuple that may hold both operand and result.
        payload = sum(shape_bytes(module.shapes[name]) for name in instruction.operands)
        payload *= n if kind == 'all-gather' else 1
        if kind == 'all-reduce' and 'all-reduce-scatter' in within:
            kind = 'reduce-scatter'  # TPUs write it as a fusion of an all-reduce and a slice.
        key = kind, group, unknown
        before = found.get(key, Collective(kind, group, 0, 0, 0.0, unknown))
        found[key] = dataclasses.replace(
            before, count=before.count + rounds, payload_bytes=before.payload_bytes + rounds * payload,
            wire_bytes=before.wire_bytes + rounds * wire_bytes(kind, payload, n),
        )
    return sorted(found.values(), key=lambda c: -c.wire_bytes)


def wire_bytes(kind: str, payload: int, n: int) -> float:
    """The bytes that each of n chips in a ring sends for a collective of `payload` bytes (see Collective)."""
    if kind == 'all-reduce':
        return 2 * (n - 1) / n * payload
    if kind in ('collective-permute', 'collective-broadcast'):
        return float(payload)
    return (n - 1) / n * payload


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """The groups of device numbers that the attributes of a collective name.

    Known forms are `replica_groups={{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)` and `mesh['a'=2,'b'=2] {'b'}`. An
    empty or missing list means all devices, and the `source_target_pairs` of a permute form one group. Raises
    ValueError for any other form.
    """
    pairs = re.search(r'source_target_pairs=\{((?:\{[\d,]*\},?)*)\}', attributes)
    if pairs:
        return [tuple(sorted({int(n) for n in re.findall(r'\d+', pairs.group(1))}))]
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if iota:
        shape, dims, order = ([int(n) for n in part.split(',')] if part else [] for part in iota.groups())
        numbers = np.arange(math.prod(dims)).reshape(dims)
        return [tuple(row) for row in numbers.transpose(order or None).reshape(shape).tolist()]
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{((?:'\w+',? ?)*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        along = re.findall(r"'(\w+)'", mesh.group(2))
        axes = sorted(sizes, key=lambda name: (name in along, along.index(name) if name in along else 0))
        numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        rows = numbers.transpose([list(sizes).index(name) for name in axes])
        return [tuple(row) for row in rows.reshape(-1, math.prod(sizes[name] for name in along)).tolist()]
    listed = re.search(r'replica_groups=\{((?:\{[\d,\s]*\},?\s*)*)\}', attributes)
    if listed is None and 'replica_groups=' in attributes:
        raise ValueError(f'replica groups in a form that is not known here: {attributes[:200]}')
    groups = re.findall(r'\{([\d,\s]+)\}', listed.group(1)) if listed else []
    return [tuple(int(n) for n in group.split(',')) for group in groups] or [tuple(range(devices))]
