"""The memory that a compiled program needs on each chip, or what the compiler said when it did not fit."""
import re
from typing import NamedTuple

import jax

from experiments.pod.chips import GIB
from ssd4rec_jax.errors import UserError


class Memory(NamedTuple):
    """The memory of a program in bytes on each chip.

    needed: what all of it takes at once. available: what the compiler gives to a program.
    aliased: the outputs that take the place of an argument.
    waiting: what lies beside the program, for the steps that follow.
    refused: the compiler's message where the program did not compile; then only `needed` and `available` are known.
    """

    needed: int
    available: int
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    waiting: int = 0
    refused: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the program compiled and needs no more than is available."""
        return self.refused is None and self.needed <= self.available

    @property
    def verdict(self) -> str:
        """A text that begins with FITS or DOES NOT FIT and says by how much."""
        needed, available, gap = map(size, (self.needed, self.available, abs(self.available - self.needed)))
        if self.fits:
            return f'FITS: {needed} of {available} a chip, {gap} to spare'
        return f'DOES NOT FIT: {needed} against {available} a chip, {gap} too much'


def size(n: float) -> str:
    """A number of bytes as text, in MiB or GiB."""
    return f'{n / GIB:,.2f} GiB' if n >= GIB else f'{n / 2**20:,.2f} MiB'


def memory_of(compiled: jax.stages.Compiled, available: int, waiting: int = 0) -> Memory:
    """The memory of a compiled program; UserError where the backend does not report it.

    waiting: bytes that are held beside it.
    """
    m = compiled.memory_analysis()
    if m is None:
        raise UserError(f'this backend, {jax.default_backend()}, does not report the memory of a program')
    arguments, outputs, aliased = m.argument_size_in_bytes, m.output_size_in_bytes, m.alias_size_in_bytes
    temporaries, code = m.temp_size_in_bytes, m.generated_code_size_in_bytes
    needed = arguments + outputs - aliased + temporaries + code + waiting
    return Memory(needed, available, arguments, outputs, aliased, temporaries, code, waiting)


def compile_or_refusal(
    lowered: jax.stages.Lowered, available: int, waiting: int = 0
) -> tuple[jax.stages.Compiled | None, Memory]:
    """(the compiled program, its memory), or (None, the compiler's figures) where the HBM does not suffice.

    waiting: as in memory_of. Raises UserError where it does not compile for another reason.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = parse_refusal(str(error), available)
        if refusal is None:
            raise UserError(f'the train step does not compile: {str(error).strip().splitlines()[0]}') from error
        return None, refusal
    return compiled, memory_of(compiled, available, waiting)


def parse_refusal(message: str, available: int) -> Memory | None:
    """The figures in an out-of-memory message about HBM; None for any other message.

    Known forms: 'Ran out of memory on HBM, the total memory required for HLO temporaries (18.00G) exceeds available HBM
    (15.75G)' and 'Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm.'
    """
    if not re.search(r'ran out of memory (on|in memory space) hbm', message, re.IGNORECASE):
        return None
    sizes = [float(n) * 1024 ** ' KMGT'.index(unit or ' ') for n, unit in re.findall(r'(\d+\.\d+)([KMGT]?)', message)]
    needed, given = (int(sizes[0]), int(sizes[1])) if len(sizes) > 1 else (available, available)
    words = message[message.lower().index('ran out'):].strip().splitlines()[0]
    return Memory(needed, given, refused=words)
