"""The dtype in which a network computes."""
import jax
import jax.numpy as jnp

from pallas_kernels.target import target
from ssd4rec_jax.errors import ConfigError


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that the setting 'auto', 'float32', 'bfloat16' or 'float64' means on the platform that is traced for.

    Raises ConfigError for 'float64' where JAX_ENABLE_X64 is not set.
    """
    if name == 'auto':
        name = 'float32' if target().platform == 'cpu' else 'bfloat16'
    if name == 'float64' and jax.dtypes.canonicalize_dtype('float64') != 'float64':
        raise ConfigError('model.dtype=float64 needs JAX_ENABLE_X64=1')
    return jnp.dtype(name)
