"""Sums over segments in a fixed order against sums in float64, as a deterministic GPU program makes them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import add_rows, take_rows, tracing_for
from pallas_kernels.sums import of_segment, segment_sums

ON = '--xla_gpu_deterministic_ops=true'


@pytest.fixture(params=['scatter', 'in order'])
def way(request, monkeypatch):
    """Both ways of making the sums, run on a CPU."""
    monkeypatch.setenv('XLA_FLAGS', ON if request.param == 'in order' else '')
    with tracing_for('gpu'):
        yield request.param


def sums_of(values, segment, count):
    total = np.zeros((count, values.shape[1]))
    kept = np.asarray(segment) < count
    np.add.at(total, np.asarray(segment)[kept], np.asarray(values, np.float64)[kept])
    return total


# Lists that are read whole, cut once and cut twice; segments that are short, long, empty, and a list of left-out ones.
@pytest.mark.parametrize('n, count', [(7, 3), (65, 9), (2200, 900), (2200, 3)])
def test_sums_and_their_gradients(way, n, count):
    rng = np.random.default_rng(n)
    segment = jnp.asarray(np.sort(rng.integers(0, count + 1, n)), jnp.int32)
    values, rows = (jnp.asarray(rng.normal(size=(size, 2)), jnp.float32) for size in (n, count + 1))

    @jax.jit
    def both(values, rows):
        sums, of_sums = jax.vjp(lambda values: segment_sums(values, segment, count), values)
        spread, of_spread = jax.vjp(lambda rows: of_segment(rows, segment), rows)
        return (sums, *of_spread(values)), (spread, *of_sums(rows[:-1]))

    (sums, gathered), (spread, scattered) = both(values, rows)
    expected = sums_of(values, segment, count + 1)
    np.testing.assert_allclose(sums, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(gathered, expected, atol=1e-4)
    np.testing.assert_array_equal(spread, np.asarray(rows)[np.asarray(segment)])
    np.testing.assert_array_equal(scattered, np.where(segment[:, None] < count, spread, 0))


def test_rows_of_a_table(way):
    rng = np.random.default_rng(0)
    table, values = (jnp.asarray(rng.normal(size=(size, 2)), jnp.float32) for size in (9, 70))
    ids = jnp.asarray(rng.integers(0, 9, 70), jnp.int32)
    beyond = ids.at[:3].set(9)

    @jax.jit
    def all_of_them(table, values):
        taken, vjp = jax.vjp(lambda table: take_rows(table, ids.reshape(7, 10)), table)
        return taken, vjp(values.reshape(7, 10, 2))[0], add_rows(table, beyond, values)

    taken, gradient, added = all_of_them(table, values)
    np.testing.assert_array_equal(taken, np.asarray(table)[np.asarray(ids)].reshape(7, 10, 2))
    np.testing.assert_allclose(gradient, sums_of(values, ids, 9), atol=1e-5)
    np.testing.assert_allclose(added, table + sums_of(values, beyond, 9), atol=1e-5)


def test_what_is_not_finite_stays_in_its_segment(way):
    segment = jnp.asarray(np.repeat(np.arange(5), 40), jnp.int32)
    values = jnp.ones((200, 1)).at[85].set(jnp.nan)
    sums = jax.jit(lambda values: segment_sums(values, segment, 5))(values)
    np.testing.assert_array_equal(sums[:, 0], [40, 40, np.nan, 40, 40])


def test_a_deterministic_gpu_program_has_no_scatter(monkeypatch):
    def program():
        with tracing_for('gpu'):
            take = jax.grad(lambda table: take_rows(table, jnp.zeros(99, jnp.int32)).sum())
            return str(jax.make_jaxpr(take)(jnp.ones((9, 2))))

    monkeypatch.setenv('XLA_FLAGS', f'{ON} --xla_cpu_x=1')
    assert 'scatter' not in program()
    monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_deterministic_ops=false')
    assert 'scatter' in program()
