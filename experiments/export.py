"""Write a trained model for other programs: see ssd4rec_jax.commands.export."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.export import main

if __name__ == '__main__':
    run(main)
