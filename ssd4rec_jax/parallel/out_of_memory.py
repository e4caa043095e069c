"""Turns XLA's out-of-memory errors into a sentence that names the settings to lower."""
import contextlib
from collections.abc import Iterator

import jax

from ssd4rec_jax.errors import TrainingError


@contextlib.contextmanager
def explain_out_of_memory(what: str) -> Iterator[None]:
    """Re-raises an out-of-memory error inside the block as a TrainingError, which says that it happened in `what`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'ut of memory' in text:
            raise TrainingError(
                f'out of memory in {what}: lower train.targets_per_step (fewer tokens a step), then '
                f'model.hidden_size; the backend said: {text.splitlines()[0] if text else type(error).__name__}'
            ) from error
        raise
