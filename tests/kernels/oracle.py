"""What ssd_scan computes with all its options, one token at a time, from where segments lie in plain numbers.

It shares no code with pallas_kernels. Given float64 it computes in float64, and its gradients are JAX's own.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Segment(NamedTuple):
    """Tokens start to stop of a row. enters, leaves: the numbers of the states that enter it and that it leaves."""

    start: int
    stop: int
    enters: int | None = None
    leaves: int | None = None


def scan(arrays, rows, *, reverse=False, dt_softplus=False, dt_limit=None):
    """(y, final states [batch, states, heads, headdim, d_state]).

    arrays: those of ssd_scan by name; initial_states [batch, states, heads, headdim, d_state].
    rows: for each row its segments, which leave out no token.
    """
    batch, length, heads, _ = arrays['x'].shape
    states = arrays['initial_states']
    begins, enters = np.zeros((batch, length), bool), np.full((batch, length), -1)
    for r, segments in enumerate(rows):
        for s in segments:
            first = s.stop - 1 if reverse else s.start
            begins[r, first], enters[r, first] = True, -1 if s.enters is None else s.enters
    zeros = jnp.zeros_like(states[:, :1])
    fresh = jnp.concatenate([states, zeros], axis=1)  # number -1 is the zero state
    D = arrays.get('D', jnp.zeros(heads))
    D = D if D.ndim == 2 else D[:, None]

    def step(h, token):
        B, C = (jnp.repeat(token[k], heads // token[k].shape[1], axis=1) for k in 'BC')
        dt = token['dt'] + arrays.get('dt_bias', 0)
        if dt_softplus:
            dt = jnp.log1p(jnp.exp(dt))
        if dt_limit:
            dt = jnp.minimum(jnp.maximum(dt, dt_limit[0]), dt_limit[1])
        h = jnp.where(token['begins'][:, None, None, None], fresh[jnp.arange(batch), token['enters']], h)
        h = jnp.exp(dt * arrays['A'])[..., None, None] * h
        h = h + dt[..., None, None] * token['x'][..., None] * B[:, :, None, :]
        y = jnp.einsum('bhpn,bhn->bhp', h, C) + D * token['x']
        if 'z' in token:
            y = y * token['z'] / (1 + jnp.exp(-token['z']))
        return h, (y, h)

    per_token = {k: arrays[k] for k in ('x', 'dt', 'B', 'C', 'z') if k in arrays} | dict(begins=begins, enters=enters)
    tokens = {k: jnp.moveaxis(jnp.asarray(a), 1, 0) for k, a in per_token.items()}
    _, (y, passed) = jax.lax.scan(step, jnp.zeros_like(states[:, 0]), tokens, reverse=reverse)
    for r, segments in enumerate(rows):
        for s in segments:
            if s.leaves is not None:
                states = states.at[r, s.leaves].set(passed[s.start if reverse else s.stop - 1, r])
    return jnp.moveaxis(y, 0, 1), states
