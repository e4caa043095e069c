"""Which implementation of ssd_scan a network's layers call."""
from typing import Any

from pallas_kernels.ssd.api import Call, choose_implementation
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.dtypes import compute_dtype


def named_implementation(config: ModelConfig) -> str | None:
    """What ssd_scan takes as `implementation`."""
    return None if config.ssd_implementation == 'auto' else config.ssd_implementation


def ssd_implementation(config: Any, rows: int, tokens: int) -> str | None:
    """The implementation that runs on [rows, tokens]; None for a network without SSD scans.

    ConfigError with the reason where the implementation asked for cannot run.
    """
    if not isinstance(config, ModelConfig):
        return None
    call = Call(
        (rows, tokens, config.num_heads, config.headdim), compute_dtype(config.dtype),
        (rows, tokens, config.ngroups, config.d_state),
    )
    try:
        return choose_implementation(call, named_implementation(config))
    except ValueError as error:
        raise ConfigError(f'model.ssd_implementation={config.ssd_implementation}: {error}') from error
