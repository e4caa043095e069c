"""Front doors of the commands, and what is run in a checkout to measure: benchmarks and the pod compiler."""
import ssd4rec_jax.commands  # noqa: F401  (it prepares the process before a command imports JAX)
