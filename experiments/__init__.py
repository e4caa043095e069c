"""Front doors of the commands, and what one runs in a checkout to measure: benchmarks and the pod compiler."""
import ssd4rec_jax.commands  # noqa: F401  (prepares the process before any command imports JAX)
