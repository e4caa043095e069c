"""Commands: flags and a data set's configuration become frozen dataclasses and one call of the library."""
from experiments.allocator import keep_freed_memory

keep_freed_memory()  # here, because it must come before any command imports JAX
