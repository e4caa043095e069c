"""The report on a projected step, as figures for JSON and as text."""
from typing import NamedTuple

from experiments.compiled.collectives import Collective
from experiments.compiled.work import Work
from experiments.pod.assumed import Assumed
from experiments.pod.chips import Chip
from experiments.pod.memory import Memory, size
from experiments.pod.projection import Projection, seconds

HBM_NOTE = (
    'operands and results, of every scheduled operation and Pallas kernel, that the compiler did not place in VMEM; a '
    'loop as often as it goes round'
)


class Report(NamedTuple):
    """All that is known about a step; what only the compiled program tells is None where it did not fit."""

    topology: str
    dataset: str
    chip: Chip
    devices: int
    model_shards: int
    assumed: Assumed
    coordinates: list[tuple[int, ...]]
    state_bytes: int
    memory: Memory
    work: Work
    compile_seconds: float
    collectives: list[Collective] | None = None
    unknown_loops: int | None = None
    hbm_bytes: int | None = None
    accessed_bytes: float | None = None
    projection: Projection | None = None

    def to_json(self) -> dict:
        """The figures for JSON: bytes and operations per step and chip, seconds per step."""
        figures = {
            'topology': self.topology, 'dataset': self.dataset, 'devices': self.devices,
            'model_shards': self.model_shards, 'chip': self.chip._asdict(), 'assumed': self.assumed.sentences,
            'shape': vars(self.assumed.shape), 'targets': self.assumed.targets,
            'memory': {**self.memory._asdict(), 'fits': self.memory.fits, 'state': self.state_bytes},
            'work': vars(self.work), 'compile_seconds': self.compile_seconds,
        }
        if self.projection is None:
            return figures
        return figures | {
            'collectives': [
                {
                    **vars(c), 'group': len(c.group), 'over': self._over(c.group),
                    'seconds': seconds(self.chip, c, self.coordinates),
                }
                for c in self.collectives or ()
            ],
            'unknown_loops': self.unknown_loops, 'hbm_bytes': self.hbm_bytes, 'hbm_bytes_are': HBM_NOTE,
            'accessed_bytes': self.accessed_bytes,
            'projected': {
                **self.projection._asdict(), 'overlapped': self.projection.overlapped,
                'in_turn': self.projection.in_turn,
            },
        }

    def __str__(self) -> str:
        return '\n'.join([*self._head(), *self._memory(), *(self._costs() if self.projection else ())])

    def _head(self):
        yield f'{self.dataset} on {self.topology}: {self.devices} chips, {self.model_shards} along model'
        yield from (f'  assumed {sentence}' for sentence in self.assumed.sentences)
        yield f'  compiled in {self.compile_seconds:.0f} s'

    def _memory(self):
        m = self.memory
        yield 'memory a chip'
        yield f'  parameters and optimiser state {size(self.state_bytes)}'
        if m.refused is None:
            yield (
                f'  arguments {size(m.arguments)}, outputs {size(m.outputs)} of which {size(m.aliased)} in their '
                f'place, temporaries {size(m.temporaries)}, code {size(m.code)}, batches that wait {size(m.waiting)}'
            )
        else:
            yield f'  the compiler: {m.refused}'
        yield f'  {m.verdict}'

    def _over(self, group) -> str:
        """The mesh axes along which a group of devices lies; the program numbers its devices along `model` first."""
        data, model = ({n // self.model_shards for n in group}, {n % self.model_shards for n in group})
        axes = [name for name, along in (('data', data), ('model', model)) if len(along) > 1]
        return 'along ' + ' and '.join(axes)

    def _costs(self):
        w, p, targets = self.work, self.projection, self.assumed.targets
        yield 'collectives a step, a chip'
        for c in self.collectives:
            loop = ', in a loop of unknown length: one round counted' if c.in_unknown_loop else ''
            yield (
                f'  {c.kind} of {len(c.group)} {self._over(c.group)}: {c.count} x, payload {size(c.payload_bytes)}, '
                f'on the wire {size(c.wire_bytes)}, {seconds(self.chip, c, self.coordinates) * 1e3:.3f} ms{loop}'
            )
        if not self.collectives:
            yield '  none'
        yield 'operations a step, a chip (counted in the traced step, Pallas kernels included)'
        once = _once(w.unknown_loops)
        yield f'  matrix products {w.matmul / 1e9:,.2f} GFLOP, as bf16 passes {w.mxu / 1e9:,.2f}{once}'
        yield (
            f'  elementwise {w.elementwise / 1e9:,.3f} G, transcendental {w.transcendental / 1e9:,.3f} G '
            '(no published rate: not timed)'
        )
        yield f'HBM traffic a step, a chip: {size(self.hbm_bytes)}{_once(self.unknown_loops)}'
        yield f'  ({HBM_NOTE})'
        yield f"  the compiler's own 'bytes accessed', VMEM included and loop bodies once: {size(self.accessed_bytes)}"
        yield f'projected at the published rates of {self.chip.name} ({self.chip.source})'
        yield f'  compute {p.compute * 1e3:.3f} ms, HBM {p.hbm * 1e3:.3f} ms, ICI {p.ici * 1e3:.3f} ms'
        yield (
            f'  a step takes {p.overlapped * 1e3:.3f} ms if they overlap, {p.in_turn * 1e3:.3f} ms if not; a real one '
            f'longer: at most {targets / p.overlapped:,.0f} and {targets / p.in_turn:,.0f} targets/s'
        )


def _once(unknown_loops: int) -> str:
    return f'; {unknown_loops} loops of unknown length counted once' if unknown_loops else ''
