"""Collectives of a compiled program: how often, among which devices, and with how many bytes."""
import math
import re
from typing import NamedTuple

import numpy as np

from experiments.compiled.hlo import Instruction, Module, shape_bytes

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute',
         'collective-broadcast')


class Collective(NamedTuple):
    """All collectives of one kind over the same devices.

    kind: as in HLO, '-start' left out. group: numbers of the program's devices in the first group (for a
    collective-permute, all devices that it moves between).
    count: how often a step runs it. payload_bytes: a step, a chip, of the full arrays: what an all-reduce reduces,
    what an all-gather makes, what a reduce-scatter reduces, what an all-to-all or a permute moves. wire_bytes: what
    each chip sends a step when the group is a ring.
    in_unknown_loop: it lies in a loop whose number of rounds the text does not tell; one round is counted.
    """

    kind: str
    group: tuple[int, ...]
    count: int
    payload_bytes: int
    wire_bytes: float
    in_unknown_loop: bool = False


def collectives(module: Module, devices: int) -> list[Collective]:
    """Those of one kind and group added up, the largest on the wire first; those of one device alone left out.

    An asynchronous one counts where it starts, one that TPUs spread over several fusions once. One in a loop counts as
    often as the loop goes round.
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
        # The operands' bytes: a -start's own shape is a tuple that may hold both operand and result.
        payload = sum(shape_bytes(module.shapes[name]) for name in instruction.operands)
        payload *= n if kind == 'all-gather' else 1
        if kind == 'all-reduce' and 'all-reduce-scatter' in within:
            kind = 'reduce-scatter'  # how TPUs write one: a fusion of an all-reduce and a slice of it
        key = kind, group, unknown
        before = found.get(key, Collective(kind, group, 0, 0, 0.0, unknown))
        found[key] = before._replace(
            count=before.count + rounds, payload_bytes=before.payload_bytes + rounds * payload,
            wire_bytes=before.wire_bytes + rounds * wire_bytes(kind, payload, n),
        )
    return sorted(found.values(), key=lambda c: -c.wire_bytes)


def goes_on_in_fusions(instruction: Instruction) -> bool:
    """Whether a collective is one of the repetitions of an asynchronous one in each fusion that runs meanwhile."""
    return 'async_collective_fusion_config' in instruction.attributes


def wire_bytes(kind: str, payload: int, n: int) -> float:
    """Bytes that each of n chips in a ring sends for a collective of `payload` bytes (see Collective)."""
    if kind == 'all-reduce':
        return 2 * (n - 1) / n * payload
    if kind in ('collective-permute', 'collective-broadcast'):
        return float(payload)
    return (n - 1) / n * payload


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """Groups of device numbers from `replica_groups={{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)`,
    `mesh['a'=2,'b'=2] {'b'}` or, empty or not there, all devices; a permute's `source_target_pairs` are one group. ValueError for another form.
    """
    pairs = re.search(r'source_target_pairs=\{((?:\{[\d,]*\},?)*)\}', attributes)
    if pairs:
        return [tuple(sorted({int(n) for n in re.findall(r'\d+', pairs.group(1))}))]
    iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if iota:
        shape, dims, order = ([int(n) for n in part.split(',')] if part else None for part in iota.groups())
        numbers = np.arange(math.prod(dims)).reshape(dims)
        return [tuple(row) for row in numbers.transpose(order).reshape(shape).tolist()]
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
