"""pallas_gpu_fused: the scan of pallas_gpu in kernels that read and write less.

states.py makes the states at the chunks' entries in one walk, outputs.py y, gradients.py all gradients but those of
states, with its work divided as division.py says, and scan.py holds the operation.
"""
