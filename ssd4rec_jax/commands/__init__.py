"""The commands that users run: flags become one call of the library. absl's flags are used here alone."""
from ssd4rec_jax.commands.allocator import tune_allocator
from ssd4rec_jax.commands.devices import skip_absent_accelerators
from ssd4rec_jax.commands.streams import hold_standard_streams

hold_standard_streams()
# Here, because both must come before any command imports JAX.
tune_allocator()
skip_absent_accelerators()
