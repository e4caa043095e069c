"""Training: the compiled step (`program`), the losses and optimisers that it is made of, and the loop (`trainer`)."""
