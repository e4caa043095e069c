"""A small state to save, and what is compared of saved ones."""
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class State(NamedTuple):
    params: dict
    opt_state: optax.OptState
    step: jax.Array


def state_of(seed, width=3):
    """A small state with optax's containers; every value depends on the seed."""
    rng = np.random.default_rng(seed)
    params = {
        'embedding': jnp.asarray(rng.standard_normal((5, width), np.float32)),
        'layers': {0: {'bias': jnp.asarray(rng.standard_normal(width), jnp.bfloat16)}},
    }
    adam = optax.adam(optax.constant_schedule(1.0))
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), adam).init(params)
    opt_state = jax.tree.map(lambda a: a + a.dtype.type(seed), opt_state)
    return State(params, opt_state, jnp.int32(seed))


def assert_bitwise(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(checkpoints, step, state, meta):
    checkpoints.save(step, state, meta)
    checkpoints.wait()


def files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in files(folder)}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def python(code, *args):
    return [sys.executable, '-c', textwrap.dedent(code), *map(str, args)]
