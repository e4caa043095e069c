"""The bytes that a compiled program moves from and to the main memory of a TPU or GPU, read from its HLO text."""
import re
from typing import NamedTuple

from pallas_kernels.compiled.hlo import Instruction, Module, goes_on_in_fusions, shape_bytes, split_tuple

# These operations move nothing, or the operations that they call are counted separately.
_FREE = frozenset(
    'parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id replica-id iota '
    'opt-barrier add-dependency async-start'.split()
)
# Asynchronous operations whose value is a tuple of operand and result, with the position of the result in it.
_RESULT_PART = {
    'copy-start': 0, 'all-gather-start': 1, 'collective-permute-start': 1, 'slice-start': 1, 'dynamic-slice-start': 1,
}
# Custom calls that are kernels; the others are markers such as AllocateBuffer and ConcatBitcast.
_KERNELS = ('tpu_custom_call', 'mosaic_gpu', '__cu', '__triton')
_START, _DONE = 'AsyncCollectiveStart', 'AsyncCollectiveDone'
_READS_A_PART = ('dynamic-slice', 'slice', 'gather')
_WRITES_A_PART = ('dynamic-update-slice', 'scatter')


class Launch(NamedTuple):
    """An operation that the compiler schedules, which on a GPU is a kernel that is launched.

    rounds: how often it runs. bytes: what one run of it moves.
    """

    instruction: Instruction
    rounds: int
    bytes: int


def launches(module: Module) -> list[Launch]:
    """The operations of a program that move something from or to HBM.

    Each operation that the compiler schedules reads its operands and writes its results, except for those that the
    layout places in VMEM. Where a fusion only slices or gathers an operand, the part that it takes is counted; where it
    updates one in place, the part that it writes. Operands and results of kernels (custom calls) are counted once.
    """
    return [
        Launch(instruction, rounds, _moved(instruction, module))
        for instruction, computation, rounds, _ in module.executed()
        if not module.is_fused(computation) and _runs(instruction)
    ]


def hbm_bytes(module: Module) -> int:
    """The bytes that a chip reads from and writes to HBM when the program runs once; loops count once per round."""
    return sum(launch.rounds * launch.bytes for launch in launches(module))


def _runs(instruction: Instruction) -> bool:
    if instruction.opcode == 'custom-call':
        return any(f'custom_call_target="{kernel}' in instruction.attributes for kernel in _KERNELS)
    return instruction.opcode not in _FREE and not instruction.opcode.endswith(('-done', '-update'))


def _moved(instruction: Instruction, module: Module) -> int:
    inner = module.body(instruction) if instruction.opcode == 'fusion' else None
    read = sum(
        _operand(instruction, inner, number, module.shapes[name], module)
        for number, name in enumerate(instruction.operands)
    )
    return read + _result(instruction, inner, module)


def _operand(instruction, inner, number, shape, module) -> int:
    whole = _in_hbm(shape)
    if inner is None:
        if instruction.opcode.removesuffix('-start') in _READS_A_PART and number == 0:
            return min(whole, shape_bytes(_value(instruction)))
        if instruction.opcode in _WRITES_A_PART and number == 0:
            return 0
        return whole
    if not whole:
        return 0
    return min(whole, _read_in(module, inner, number, whole))


def _read_in(module: Module, computation: str, number: int, whole: int) -> int:
    """The bytes of parameter `number` that a fused computation reads.

    These are all of its bytes, unless every use takes a part, replaces a part or passes it on. What an asynchronous
    collective moves is counted where it starts.
    """
    fused = module.computations[computation]
    parameter = next(i for i in fused if i.opcode == 'parameter' and i.arguments == str(number))
    starts = any(_START in i.attributes for i in fused)
    total, names = 0, [parameter.name]
    while names:
        name = names.pop()
        for use in (i for i in fused if name in i.operands):
            if use.opcode == 'tuple' or _DONE in use.attributes or (goes_on_in_fusions(use) and not starts):
                continue  # It is only passed on.
            if use.opcode == 'bitcast':
                names.append(use.name)
            elif use.opcode == 'fusion':  # A fusion inside this one.
                inner = module.body(use)
                total += sum(_read_in(module, inner, k, whole) for k, n in enumerate(use.operands) if n == name)
            elif use.opcode in _READS_A_PART and use.operands[0] == name:
                total += shape_bytes(use.shape)
            elif not (use.opcode in _WRITES_A_PART and use.operands[0] == name):
                return whole
    return total


def _result(instruction, inner, module) -> int:
    if inner is None:
        return _written(instruction, _value(instruction), [], module)
    fused, root = _root(module, inner)
    while root.opcode == 'fusion':
        fused, root = _root(module, module.body(root))
    if _START in root.attributes:
        return _in_hbm(split_tuple(instruction.shape)[1])  # The first part repeats the operand, the others are flags.
    if root.opcode != 'tuple':
        return _written(root, instruction.shape, fused, module)  # It may have several results itself, as a kernel has.
    by_name = {i.name: i for i in fused}
    return sum(
        _written(by_name[name], shape, fused, module)
        for name, shape in zip(root.operands, split_tuple(instruction.shape), strict=True)
    )


def _root(module: Module, computation: str) -> tuple[list[Instruction], Instruction]:
    fused = module.computations[computation]
    return fused, next((i for i in fused if i.root), fused[-1])


def _value(instruction) -> str:
    """The shape of an operation's result; for an asynchronous one, without the operand that its tuple repeats."""
    part = _RESULT_PART.get(instruction.opcode)
    return instruction.shape if part is None else split_tuple(instruction.shape)[part]


def _written(root, shape, fused, module) -> int:
    whole = _in_hbm(shape)
    by_name = {i.name: i for i in fused}
    while root.opcode == 'bitcast' and root.operands[0] in by_name:
        root = by_name[root.operands[0]]
    if fused and (root.opcode == 'parameter' or _DONE in root.attributes or goes_on_in_fusions(root)):
        return 0  # It is passed on, or written by another operation.
    if whole and root.opcode in _WRITES_A_PART:
        return min(whole, _update(root, module))
    return whole


def _update(instruction, module) -> int:
    """The bytes of the part that a dynamic-update-slice or scatter writes."""
    operands = instruction.operands
    return shape_bytes(module.shapes[operands[1 if instruction.opcode == 'dynamic-update-slice' else -1]])


def _in_hbm(shape: str) -> int:
    """The bytes of those arrays of a shape that lie in HBM (memory space 0)."""
    return sum(
        shape_bytes(part) for part in _parts(shape) if not re.search(r'S\([1-9]\d*\)', part)
    )


def _parts(shape: str) -> list[str]:
    """The arrays of a shape, with nested tuples flattened."""
    if not shape.startswith('('):
        return [shape]
    return [array for part in split_tuple(shape) for array in _parts(part)]
