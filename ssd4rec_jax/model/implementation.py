"""Which implementation of ssd_scan a network's layers call."""
from typing import Any

from pallas_kernels.ssd.api import Call, choose_implementation
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.dtypes import compute_dtype


def named_implementation(config: ModelConfig) -> str | None:
    """The `implementation` argument of ssd_scan: the name in the settings, or None where they say 'auto'."""
    return None if config.ssd_implementation == 'auto' else config.ssd_implementation


def named(config: ModelConfig, *names: str) -> bool:
    """Whether the settings name one of these implementations, so that what surrounds its scan may be kernels too."""
    return named_implementation(config) in names


def ssd_implementation(config: Any, rows: int, tokens: int) -> str | None:
    """The name of the implementation that scans a batch of [rows, tokens]; None for a network without SSD scans.

    rows is the number of rows on one device. Raises ConfigError, with the reason, where the implementation that
    model.ssd_implementation names cannot run.
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
