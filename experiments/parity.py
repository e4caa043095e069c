"""Compare the model with a golden file of the released PyTorch code: see ssd4rec_jax.commands.parity."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.parity import main

if __name__ == '__main__':
    run(main)
