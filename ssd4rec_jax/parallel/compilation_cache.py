"""Compiled programs kept on disk between processes."""
import os
from pathlib import Path

import jax

CACHE_VARIABLE = 'SSD4REC_CACHE'


def enable_compilation_cache() -> Path:
    """Keep compiled programs in $SSD4REC_CACHE or ~/.cache/ssd4rec-jax, and return the folder."""
    root = Path(os.environ.get(CACHE_VARIABLE, Path.home() / '.cache' / 'ssd4rec-jax'))
    path = root / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    return path
