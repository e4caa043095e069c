"""SSD in Mosaic GPU kernels.

tiles.py says how a call is cut, and holds what the kernels share. prepared.py holds what XLA does around the scan's.
forward.py and backward.py hold the kernels, and scan.py the operation; fused/ holds another form of both.
"""
