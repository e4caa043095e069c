"""Operations counted from jaxprs, compared with counts by hand and with XLA's own count."""
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from experiments.compiled.step import trace_step
from experiments.compiled.work import Work, work_of
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.presets import default_config

A, B = jnp.zeros((8, 16)), jnp.zeros((16, 32))
PRODUCT = 2 * 8 * 16 * 32


def work(f, *args):
    return work_of(jax.make_jaxpr(f)(*args))


def test_products():
    assert work(jnp.matmul, A, B) == Work(matmul=PRODUCT, mxu=PRODUCT)
    highest = work(lambda a, b: jnp.matmul(a, b, precision='highest'), A, B)
    assert highest == Work(matmul=PRODUCT, mxu=6 * PRODUCT)
    narrow = work(lambda a, b: jnp.matmul(a, b, precision='highest'), A.astype('bfloat16'), B.astype('bfloat16'))
    assert narrow == Work(matmul=PRODUCT, mxu=PRODUCT)
    batched = work(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), jnp.zeros((3, 8, 16)), jnp.zeros((3, 16, 32)))
    assert batched.matmul == 3 * PRODUCT


def test_elementwise_transcendental_and_sums():
    assert work(lambda a: jnp.sum(jnp.exp(a) * a), A) == Work(elementwise=128 + 128, transcendental=128)


def test_loops_and_branches():
    def step(a, _):
        return jnp.tanh(a), None

    assert work(lambda a: lax.scan(step, a, None, length=7)[0], A) == Work(transcendental=7 * 128)
    assert work(lambda a: lax.while_loop(lambda a: a[0, 0] < 1, jnp.tanh, a), A).unknown_loops == 1
    branch = work(lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a + 1) @ (b * 2) * 0), A, B)
    assert branch.matmul == PRODUCT


def test_a_gradient_counts_its_custom_rules():
    @jax.custom_vjp
    def f(a, b):
        return a @ b

    f.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert work(jax.grad(lambda a, b: f(a, b).sum(), argnums=(0, 1)), A, B).matmul == 3 * PRODUCT


def test_a_kernel_counts_once_a_program_of_its_grid():
    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    def call(a, b):
        return pl.pallas_call(
            kernel, grid=(2, 3), out_shape=jax.ShapeDtypeStruct((8, 32), jnp.float32), interpret=True,
        )(a, b)

    assert work(call, A, B).matmul == 6 * PRODUCT


@pytest.mark.parametrize('layers', [1, 2])
def test_a_train_steps_operations_are_those_that_xla_counts(layers):
    """For a step without long loops, whose bodies XLA counts once; most of the work is matrix products."""
    overrides = ['model.ssd_implementation=xla', f'model.num_layers={layers}']
    config = apply_overrides(default_config('kuairand'), overrides)
    step = trace_step(config, 999, StepShape(rows=1, tokens=32, segments=16), jax.devices()[:1], 1)
    ours, theirs = work_of(step.jaxpr), step.lowered.cost_analysis()
    assert ours.matmul + ours.elementwise == pytest.approx(theirs['flops'], rel=0.02)
    assert ours.transcendental == pytest.approx(theirs['transcendentals'], rel=0.02)
    assert ours.matmul > 0.75 * theirs['flops']
    assert ours.unknown_loops == 0
