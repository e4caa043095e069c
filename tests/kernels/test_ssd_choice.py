"""ssd_scan: arguments that do not fit, and which implementation runs where none is named."""
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import ssd_scan, tracing_for
from pallas_kernels.ssd import api
from pallas_kernels.ssd.api import IMPLEMENTATIONS
from tests.kernels.scans import HERE, LENGTH, inputs


@pytest.mark.parametrize('change,named', [
    (dict(x=jnp.zeros((2, 45, 4))), r'x has shape \(2, 45, 4\)'),
    (dict(dt=jnp.zeros((2, LENGTH, 3))), 'dt has shape'),
    (dict(A=jnp.zeros(3)), 'A has shape'),
    (dict(B=jnp.zeros((2, LENGTH, 3, 5)), C=jnp.zeros((2, LENGTH, 3, 5))), '2 heads cannot be split into the 3 groups'),
    (dict(C=jnp.zeros((2, LENGTH, 2, 6))), 'C has shape'),
    (dict(B=jnp.zeros((2, LENGTH, 1, 16), jnp.bfloat16)), 'B is bfloat16'),
    (dict(segment_ids=jnp.zeros((2, 44), jnp.int32)), 'segment_ids has shape'),
    (dict(segment_ids=jnp.zeros((2, LENGTH))), 'segment_ids are float32'),
    (dict(chunk_size=0), 'chunk_size=0'),
    (dict(implementation='cuda'), "'cuda' is unknown: there are pallas_tpu, pallas_gpu, xla, reference"),
    (dict(implementation='pallas_gpu'), 'pallas_gpu runs on NVIDIA GPUs and this program is for cpu'),
    (dict(implementation='pallas_tpu'), 'pallas_tpu runs on TPUs and this program is for cpu'),
])
def test_arguments_that_do_not_fit_are_named(change, named):
    arrays, _ = inputs(dtype=np.float32)
    with pytest.raises(ValueError, match=named):
        ssd_scan(**(arrays | change))


def test_what_no_chip_has_run_is_taken_only_where_it_is_named(monkeypatch):
    call = api.Call((1, 8, 8, 16), jnp.dtype('bfloat16'), (1, 8, 1, 16))
    left = {name: IMPLEMENTATIONS[name] for name in ('pallas_tpu', 'pallas_gpu_fused')}
    monkeypatch.setattr(api, 'IMPLEMENTATIONS', left)
    with tracing_for('gpu'), pytest.raises(ValueError, match='^pallas_tpu runs on TPUs and this program is for gpu$'):
        api.choose_implementation(call)
    with tracing_for('gpu'):
        if 'pallas_gpu_fused' in HERE:
            assert api.choose_implementation(call, ('pallas_tpu', 'pallas_gpu_fused')) == 'pallas_gpu_fused'


@pytest.mark.parametrize('platform,dtype,chosen,said', [
    ('cpu', 'float32', 'xla', 'pallas_tpu runs on TPUs and this program is for cpu'),
    ('tpu', 'bfloat16', 'pallas_tpu', None),
    ('tpu', 'float16', 'xla', 'pallas_tpu computes in bfloat16 or float32 and x is float16'),
    # A JAX may be too old for pallas_gpu.
    ('gpu', 'bfloat16', 'pallas_gpu' if 'pallas_gpu' in HERE else 'xla', 'pallas_tpu runs on TPUs and this program is'),
    ('gpu', 'float32', 'xla', 'computes in bfloat16 and x is float32' if 'pallas_gpu' in HERE else 'needs JAX 0.11'),
])
def test_what_runs_where_none_is_named_is_logged_once_with_the_reasons(caplog, platform, dtype, chosen, said):
    api._log_once.cache_clear()
    call = api.Call((1, 8, 8, 16), jnp.dtype(dtype), (1, 8, 1, 16))
    with caplog.at_level(logging.INFO), tracing_for(platform):
        assert [api.choose_implementation(call) for _ in range(3)] == [chosen] * 3
    [record] = [r for r in caplog.records if r.name == api.__name__]
    assert f'ssd_scan runs as {chosen}' in record.getMessage() and (said or '') in record.getMessage()
