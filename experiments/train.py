"""Train SSD4Rec on a data set and rank its test items: see ssd4rec_jax.commands.train."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.train import main

if __name__ == '__main__':
    run(main)
