"""The formats of an export by name."""
from collections.abc import Callable
from pathlib import Path

from ssd4rec_jax.export.program import export_program
from ssd4rec_jax.export.released import export_released
from ssd4rec_jax.export.vectors import export_vectors
from ssd4rec_jax.run.saved_run import SavedRun

# Each writes a run into a folder and returns in words what was written.
FORMATS: dict[str, Callable[[Path, SavedRun], str]] = {
    'jax': export_program, 'vectors': export_vectors, 'torch': export_released,
}
