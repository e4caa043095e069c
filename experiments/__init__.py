"""Commands: flags and a data set's configuration become frozen dataclasses and one call of the library."""
from experiments.allocator import tune_allocator
from experiments.devices import skip_absent_accelerators

# Here, because both must come before any command imports JAX.
tune_allocator()
skip_absent_accelerators()
