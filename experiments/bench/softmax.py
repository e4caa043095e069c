"""The full-softmax loss and its gradients, with the whole catalogue at once and in chunks of it."""
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.clock import median_seconds
from ssd4rec_jax.model.scores import MAX_SCORES
from ssd4rec_jax.train.full_softmax import softmax_loss_sum

TARGETS, WIDTH = 1024, 256
CATALOGUES = 12_101, 1_000_000


def measure_softmax(repeats: int) -> list[dict]:
    """The time and the temporaries in bytes for each catalogue and form; the time is None where they do not fit.

    The form 'whole' has the scores of all readouts at once, on a CPU of few of them. The form 'chunked' cuts the
    catalogue as training does, or in two where training would not cut it.
    """
    rows = []
    for items in CATALOGUES:
        rng = np.random.default_rng(0)
        readout = jnp.asarray(rng.normal(size=(TARGETS, WIDTH)), jnp.float32)
        table = jnp.asarray(rng.normal(scale=0.02, size=(items + 1, WIDTH)), jnp.float32)
        targets = jnp.asarray(rng.integers(1, items + 1, TARGETS))
        limits = {'whole': TARGETS * (items + 1), 'chunked': min(MAX_SCORES, TARGETS * (items + 1) // 2)}
        compiled = {form: _compiled(readout, table, targets, limit) for form, limit in limits.items()}
        memory = {form: step.memory_analysis().temp_size_in_bytes for form, step in compiled.items()}
        calls: dict[str, Callable[[], object]] = {
            form: functools.partial(_finish, step, readout, table)
            for form, step in compiled.items() if memory[form] < _memory() / 2
        }
        seconds = median_seconds(calls, repeats)
        rows += [
            {
                'items': items, 'targets': TARGETS, 'form': form, 'seconds': seconds.get(form),
                'temporary_bytes': memory[form],
            }
            for form in compiled
        ]
    return rows


def _compiled(readout, table, targets, max_scores):
    def loss(readout, table):
        return softmax_loss_sum(readout, table, targets, targets > 0, max_scores=max_scores)

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(readout, table).compile()


def _finish(step, *args):
    return jax.block_until_ready(step(*args))


def _memory() -> int:
    """The memory of the device in bytes, or of the machine where the backend does not report it."""
    limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit')
    return limit or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
