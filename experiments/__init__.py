"""Commands: flags and a data set's configuration become frozen dataclasses and one call of the library."""
from experiments.allocator import keep_freed_memory
from experiments.devices import skip_absent_accelerators

# Here, because both must come before any command imports JAX.
keep_freed_memory()
skip_absent_accelerators()
