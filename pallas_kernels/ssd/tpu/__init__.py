"""SSD in Mosaic TPU kernels.

tiling.py: what a program holds. lanes.py: the layout of heads. chunk.py: the arithmetic of a chunk. scan.py: the kernels.
"""
