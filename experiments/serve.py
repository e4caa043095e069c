"""Answer over HTTP with a trained model: see ssd4rec_jax.commands.serve."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.serve import main

if __name__ == '__main__':
    run(main)
