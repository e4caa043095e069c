"""Parses the HLO text of a compiled program: its computations, their instructions, and how often each one runs."""
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_SHAPE = re.compile(r'\b(pred|token|opaque|bf16|[sufc]\d+\w*)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_PARENTHESIS = re.compile(r'[()]')


class Instruction(NamedTuple):
    """A line `name = shape opcode(arguments), attributes`. root: whether it is the value of its computation."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    root: bool = False

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that it takes as operands."""
        return _NAME.findall(self.arguments)


class Module(NamedTuple):
    """A parsed program.

    computations: the instructions of each computation, in order. shapes: the shape of each instruction's value.
    entry: the computation that runs. fused: the computations that are bodies of fusions.
    """

    computations: dict[str, list[Instruction]]
    shapes: dict[str, str]
    entry: str
    fused: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> 'Module':
        """The program that a text describes."""
        computations: dict[str, list[Instruction]] = {}
        lines: list[Instruction] = []
        entry = ''
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                lines = computations[header.group(2)] = []
                entry = header.group(2) if header.group(1) else entry
            elif match := _INSTRUCTION.match(line):
                lines.append(_instruction(*match.groups()))
        everything = [i for lines in computations.values() for i in lines]
        fused = frozenset(cls.body(i) for i in everything if i.opcode == 'fusion')
        return cls(computations, {i.name: i.shape for i in everything}, entry, fused)

    @staticmethod
    def called(instruction: Instruction, role: str) -> str | None:
        """The computation that an instruction names in a role such as `calls`, `body` or `condition`, if any."""
        match = re.search(rf'\b{role}=%?([\w.\-]+)', instruction.attributes)
        return match.group(1) if match else None

    @classmethod
    def body(cls, fusion: Instruction) -> str:
        """The computation inside a fusion; ValueError where the text names none."""
        called = cls.called(fusion, 'calls')
        if called is None:
            raise ValueError(f'the fusion {fusion.name} names no computation')
        return called

    def is_fused(self, computation: str) -> bool:
        """Whether a computation is the body of a fusion, whose values never lie in memory."""
        return computation in self.fused

    def executed(self) -> Iterator[tuple[Instruction, str, int, bool]]:
        """Everything that runs, from the entry on, with all branches of conditionals.

        Yields (instruction, its computation, how often it runs, whether it lies in a loop of unknown length); such a
        loop is counted as one round.
        """
        waiting = [(self.entry, 1, False)]
        while waiting:
            name, rounds, unknown = waiting.pop()
            for instruction in self.computations.get(name, ()):
                yield instruction, name, rounds, unknown
                times = self.rounds(instruction) if instruction.opcode == 'while' else 1
                waiting += [
                    (c, rounds * (times or 1), unknown or times is None) for c in self._runs(instruction)
                ]

    def _runs(self, instruction: Instruction) -> list[str]:
        if instruction.opcode in ('fusion', 'while', 'call', 'conditional') or instruction.opcode.startswith('async'):
            roles = ('calls', 'body', 'to_apply', 'true_computation', 'false_computation')
            called = [c for c in (self.called(instruction, role) for role in roles) if c]
            branches = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
            return called + (_NAME.findall(branches.group(1)) if branches else [])
        return []

    def rounds(self, loop: Instruction) -> int | None:
        """The number of rounds of a while loop, or None where the text does not tell.

        It is the compiler's own note or, without one, the constant of a condition `counter < constant`, since the
        counters of JAX's loops start at 0.
        """
        known = re.search(r'"?known_trip_count"?\s*[:=]\s*\{"?n"?\s*:\s*"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        lines = list(self.computations.get(self.called(loop, 'condition') or '', ()))
        for line in tuple(lines):  # The comparison may lie in a fusion.
            lines += self.computations.get(self.called(line, 'calls') or '', ())
        limits = [int(i.arguments) for i in lines if i.opcode == 'constant' and i.shape.startswith(('s32[]', 'u32[]'))]
        less = [
            i for i in lines
            if i.opcode == 'compare' and 'direction=LT' in i.attributes and i.shape.startswith('pred[]')
        ]
        return limits[0] if len(limits) == len(less) == 1 else None

    def loops(self) -> list[int | None]:
        """The rounds of each while loop."""
        return [self.rounds(i) for lines in self.computations.values() for i in lines if i.opcode == 'while']


def goes_on_in_fusions(instruction: Instruction) -> bool:
    """Whether this is one of the copies of an asynchronous collective in the fusions that run at the same time."""
    return 'async_collective_fusion_config' in instruction.attributes


def shape_bytes(shape: str) -> int:
    """The bytes of a shape such as 'f32[8,128]{1,0:T(8,128)}' or of a tuple, without the layout's padding."""
    total = 0
    for dtype, sizes in _SHAPE.findall(shape):
        bits = _BITS[dtype] if dtype in _BITS else int(re.findall(r'\d+', dtype)[0])
        total += -(-bits * math.prod(int(n) for n in sizes.split(',') if n) // 8)
    return total


def split_tuple(shape: str) -> list[str]:
    """The parts of the shape '(a, b)' of a tuple; of another shape, the shape itself."""
    if not shape.startswith('('):
        return [shape]
    parts, depth, start = [], 0, 1
    for at, letter in enumerate(shape):
        depth += letter in '([{'
        depth -= letter in ')]}'
        if (letter == ',' and depth == 1) or depth == 0:
            parts.append(re.sub(r'/\*.*?\*/', '', shape[start:at]).strip())
            start = at + 1
    return [part for part in parts if part]


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
    """The instruction `name` from a text such as 'f32[8]{0} add(%a, %b), metadata={}'; its shape may be a tuple."""
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.index(' ')
    shape, call = rest[:end], rest[end:].lstrip()
    opening = call.index('(')
    closing = _closing(call, opening)
    return Instruction(name, shape, call[:opening], call[opening + 1:closing], call[closing + 1:], bool(root))


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in _PARENTHESIS.finditer(text, opening):
        depth += 1 if match.group() == '(' else -1
        if not depth:
            return match.start()
    raise ValueError(f'a parenthesis is not closed in {text[:200]}')
