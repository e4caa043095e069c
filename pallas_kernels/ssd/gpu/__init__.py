"""SSD in Mosaic GPU kernels: tiles.py how a call is cut and shared idioms, forward.py and backward.py the kernels, scan.py the operation."""
