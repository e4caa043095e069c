"""Which implementation of ssd_scan a model's layers call."""
import jax.numpy as jnp

from pallas_kernels.ssd.api import Call, choose_implementation
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.config import ModelConfig


def named_implementation(config: ModelConfig) -> str | None:
    """What ssd_scan takes as `implementation`."""
    return None if config.ssd_implementation == 'auto' else config.ssd_implementation


def ssd_implementation(config: ModelConfig, dtype: jnp.dtype, rows: int, tokens: int) -> str:
    """The implementation that runs on [rows, tokens]; ConfigError with the reason where the one asked for cannot."""
    call = Call((rows, tokens, config.num_heads, config.headdim), dtype, (rows, tokens, config.ngroups, config.d_state))
    try:
        return choose_implementation(call, named_implementation(config))
    except ValueError as error:
        raise ConfigError(f'model.ssd_implementation={config.ssd_implementation}: {error}') from error
