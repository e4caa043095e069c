"""The flag that chooses the settings to begin with."""
from collections.abc import Callable

from absl import flags

from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.presets import PRESETS, preset_config

PRESET = flags.DEFINE_enum(
    'preset', None, PRESETS,
    "Settings to begin with: auto fits them to the log and this machine, best are the data set's that were measured, "
    'small are half as wide, published are the paper\'s. If not given: best, or auto where nothing was measured.'
)


def begun_with(dataset: str, prepared: Callable[[RunConfig], SequenceDataset]) -> tuple[RunConfig, str]:
    """(the settings to begin with that the flags choose, a sentence that says what they are); see preset_config."""
    def platform() -> str:
        import jax  # What reads no log needs no JAX.

        return jax.default_backend()

    return preset_config(dataset, PRESET.value, prepared, platform)
