"""The arithmetic of a traced program, counted from its jaxpr.

The compiler's own count includes the body of a loop only once and leaves out Pallas kernels. The jaxpr tells how many
rounds a scan has and what a kernel computes in each program of its grid.
"""
import dataclasses
import math

import jax
import jax.extend.core
from jax import lax

_ELEMENTWISE = frozenset(
    'add sub mul div rem max min neg abs sign floor ceil round select_n eq ne lt le gt ge and or xor not shift_left '
    'shift_right_logical shift_right_arithmetic convert_element_type integer_pow square clamp is_finite add_any '
    'population_count mul_add'.split()
)
_TRANSCENDENTAL = frozenset(
    'exp exp2 log log1p expm1 tanh logistic erf erfc erf_inv sin cos sqrt rsqrt pow cbrt'.split()
)
_REDUCTIONS = frozenset(
    'reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum cumprod cummax '
    'cumlogsumexp reduce'.split()
)
# The number of bf16 products that a TPU's matrix unit makes for one product of float32 operands, by precision.
_PASSES = {lax.Precision.DEFAULT: 1, lax.Precision.HIGH: 3, lax.Precision.HIGHEST: 6}


@dataclasses.dataclass(frozen=True)
class Work:
    """The operations of a program on one chip.

    matmul: FLOPs of matrix products, 2 for each multiply-add.
    mxu: the same as bf16 passes of a TPU's matrix unit, so products in float32 precision count 6 times (3 times at
      precision HIGH).
    elementwise: one for each element of the results of arithmetic, comparisons, selections and conversions, and of the
      operands of reductions.
    transcendental: one for each element of exp, log, tanh and the like.
    unknown_loops: the number of while loops whose rounds the jaxpr does not tell; each counts as one round.
    """

    matmul: int = 0
    mxu: int = 0
    elementwise: int = 0
    transcendental: int = 0
    unknown_loops: int = 0

    def __add__(self, other: 'Work') -> 'Work':
        return Work(
            self.matmul + other.matmul, self.mxu + other.mxu, self.elementwise + other.elementwise,
            self.transcendental + other.transcendental, self.unknown_loops + other.unknown_loops,
        )

    def times(self, n: int) -> 'Work':
        """The operations of n repetitions; loops of unknown length are still the same ones."""
        return Work(n * self.matmul, n * self.mxu, n * self.elementwise, n * self.transcendental, self.unknown_loops)


def work_of(jaxpr: jax.extend.core.ClosedJaxpr) -> Work:
    """The work of a jaxpr and all jaxprs inside it; for a conditional, the branch with the most matmul work."""
    return sum((_of_equation(eqn) for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns), Work())


def _of_equation(eqn) -> Work:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
        return _of_product(eqn)
    if name == 'conv_general_dilated':
        raise NotImplementedError('the model has no convolution primitive; count it here before it gets one')
    if name in _ELEMENTWISE:
        return Work(elementwise=_elements(eqn.outvars))
    if name in _TRANSCENDENTAL:
        return Work(transcendental=_elements(eqn.outvars))
    if name in _REDUCTIONS:
        return Work(elementwise=_elements(eqn.invars))
    if name.startswith('scatter'):
        return Work(elementwise=_elements(eqn.invars[2:]))
    if name == 'scan':
        return work_of(params['jaxpr']).times(params['length'])
    if name == 'while':
        return work_of(params['body_jaxpr']) + work_of(params['cond_jaxpr']) + Work(unknown_loops=1)
    if name == 'cond':
        return max((work_of(branch) for branch in params['branches']), key=lambda work: work.matmul)
    if name == 'pallas_call':
        return work_of(params['jaxpr']).times(math.prod(params['grid_mapping'].grid))
    return sum((work_of(inner) for value in params.values() for inner in _jaxprs(value)), Work())


def _of_product(eqn) -> Work:
    (contracted, _), _ = eqn.params['dimension_numbers']
    left = eqn.invars[0].aval
    flops = 2 * _elements(eqn.outvars) * math.prod(left.shape[axis] for axis in contracted)
    precision = eqn.params['precision']
    asked = precision[0] if isinstance(precision, tuple) else precision
    passes = _PASSES.get(asked, 1) if left.dtype.itemsize > 2 else 1
    return Work(matmul=flops, mxu=flops * passes)


def _jaxprs(value) -> list:
    if isinstance(value, (tuple, list)):
        return [jaxpr for each in value for jaxpr in _jaxprs(each)]
    return [value] if hasattr(value, 'eqns') or hasattr(value, 'jaxpr') else []


def _elements(variables) -> int:
    return sum(math.prod(getattr(v.aval, 'shape', ())) for v in variables)
