"""Training: the compiled step (`program`), the losses and optimisers that it consists of, and the loop (`trainer`)."""
