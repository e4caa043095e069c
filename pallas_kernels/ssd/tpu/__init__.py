"""SSD in Mosaic TPU kernels.

tiling.py says what a program of a kernel holds and lanes.py how heads are laid out. chunk.py holds the arithmetic of a
chunk, and scan.py the kernels.
"""
