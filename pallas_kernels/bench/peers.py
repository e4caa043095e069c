"""What users would take instead of ssd_scan, measured where it is installed. None of it is a dependency.

Each peer is a function of a workload and a dtype. It returns {'forward': call, 'forward+backward': call} and the
seconds that each took to compile, or raises Unavailable with the reason. Attention has no state: it is given q, k and
v of x's shape, and reads every earlier token.
"""
import importlib.util
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.bench.clock import Call, compiled
from pallas_kernels.ssd.workloads import Workload

Calls = tuple[dict[str, Call], dict[str, float]]
MAX_SQUARE = 2**32  # bytes of the [length, length] scores that attention in plain XLA may hold


class Unavailable(Exception):
    """A peer cannot be measured here. The message is the reason, as a sentence."""


def attention(w: Workload, dtype: DTypeLike, implementation: str) -> Calls:
    """Causal jax.nn.dot_product_attention. implementation: 'xla' or 'cudnn'.

    Raises Unavailable without an NVIDIA GPU, for float32 with cuDNN, or if the scores would take too much memory.
    """
    if implementation == 'cudnn' and jax.default_backend() != 'gpu':
        raise Unavailable('cuDNN attention needs an NVIDIA GPU')
    if implementation == 'cudnn' and jnp.dtype(dtype) == jnp.float32:
        raise Unavailable('cuDNN attention computes in bfloat16')
    square = 4 * w.batch * w.heads * w.length**2
    if implementation == 'xla' and square > MAX_SQUARE:
        raise Unavailable(f'attention in plain XLA would hold {square / 2**30:.0f} GiB of scores')
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (w.batch, w.length, w.heads, w.headdim), dtype) for key in keys)

    def forward(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)

    def both(q, k, v, g):
        y, vjp = jax.vjp(forward, q, k, v)
        return y, vjp(g)

    try:
        return compiled({'forward': (forward, (q, k, v)), 'forward+backward': (both, (q, k, v, g))})
    except (RuntimeError, ValueError) as error:  # cuDNN is missing or too old, or has no plan for this shape
        raise Unavailable(f'{implementation} attention: {error}') from error


def mamba2_function() -> Callable:
    """mamba_chunk_scan_combined, imported without running mamba_ssm/__init__.py.

    That file imports models, which need compiled extensions and packages that the Triton kernels do not need. Raises
    Unavailable if a package is missing or cannot be imported.
    """
    for package in ('torch', 'triton', 'mamba_ssm'):
        if importlib.util.find_spec(package) is None:
            raise Unavailable(f"Mamba-2's Triton kernels need {package}, which is not installed")
    if 'mamba_ssm' not in sys.modules:
        spec = importlib.util.find_spec('mamba_ssm')
        assert spec is not None  # it was found above
        sys.modules['mamba_ssm'] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module('mamba_ssm.ops.triton.ssd_combined').mamba_chunk_scan_combined
    except ImportError as error:
        raise Unavailable(f"Mamba-2's Triton kernels cannot be imported: {error}") from error


def mamba2_triton(w: Workload, dtype: DTypeLike) -> Calls:
    """mamba_chunk_scan_combined of the mamba-ssm package, with seq_idx. Raises Unavailable without it or a GPU."""
    scan = mamba2_function()
    import torch
    if not torch.cuda.is_available():
        raise Unavailable("Mamba-2's Triton kernels need an NVIDIA GPU")

    def of(a, kind):
        return torch.tensor(np.asarray(a), device='cuda', dtype=kind)

    arrays, ids = w.arrays()
    narrow = {'bfloat16': torch.bfloat16, 'float32': torch.float32}[jnp.dtype(dtype).name]
    x, B, C = (of(arrays[k], narrow).requires_grad_() for k in 'xBC')
    dt, A, D = (of(arrays[k], torch.float32).requires_grad_() for k in ('dt', 'A', 'D'))
    seq_idx = of(ids, torch.int32)
    inputs = x, dt, A, B, C, D
    g = torch.randn_like(x)

    def forward():
        with torch.no_grad():
            scan(x, dt, A, B, C, chunk_size=256, D=D, seq_idx=seq_idx)
        torch.cuda.synchronize()

    def both():
        y = scan(x, dt, A, B, C, chunk_size=256, D=D, seq_idx=seq_idx)
        torch.autograd.grad(y, inputs, g)
        torch.cuda.synchronize()

    calls: dict[str, Call] = {'forward': forward, 'forward+backward': both}
    seconds: dict[str, float] = {}
    for name, call in calls.items():  # the first call compiles and tunes
        started = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - started
    return calls, seconds


def mamba2_jax(w: Workload, dtype: DTypeLike) -> Calls:
    """ssd_forward of the mamba2-jax package. Raises Unavailable without it, or where its decays would not fit memory.

    It has no segments, so each row is one. It takes B and C of each head, and softplus is always applied to dt.
    """
    if importlib.util.find_spec('mamba2_jax') is None:
        raise Unavailable('mamba2-jax is not installed')
    from mamba2_jax.modeling import ssd_forward

    chunk = min(256, w.length)  # its default
    decays = 4 * w.batch * w.length * w.heads * chunk
    if decays > MAX_SQUARE:
        raise Unavailable(f'mamba2-jax would hold {decays / 2**30:.0f} GiB of decays')
    arrays, _ = w.arrays()
    x, B, C = (jnp.asarray(arrays[k], dtype) for k in 'xBC')
    B, C = (jnp.repeat(a, w.heads // w.groups, axis=2) for a in (B, C))
    dt, A, D = (jnp.asarray(arrays[k], jnp.float32) for k in ('dt', 'A', 'D'))
    g = jax.random.normal(jax.random.key(0), x.shape, jnp.float32).astype(dtype)

    def forward(x, dt, A, B, C, D):
        return ssd_forward(x, jnp.log(jnp.expm1(dt)), A, B, C, chunk, D, jnp.zeros_like(D), 0.0, jnp.inf)[0]

    def both(x, dt, A, B, C, D, g):
        y, vjp = jax.vjp(forward, x, dt, A, B, C, D)
        return y, vjp(g.astype(y.dtype))

    inputs = x, dt, A, B, C, D
    return compiled({'forward': (forward, inputs), 'forward+backward': (both, (*inputs, g))})


PEERS: dict[str, Callable[[Workload, DTypeLike], Calls]] = {
    'jax attention': lambda w, dtype: attention(w, dtype, 'xla'),
    'cuDNN attention': lambda w, dtype: attention(w, dtype, 'cudnn'),
    'Mamba-2 Triton': mamba2_triton,
    'mamba2-jax': mamba2_jax,
}
