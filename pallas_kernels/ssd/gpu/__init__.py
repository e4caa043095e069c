"""SSD in Mosaic GPU kernels.

tiles.py says how a call is cut, and holds what the kernels share. forward.py and backward.py hold the kernels, and
scan.py the operation.
"""
