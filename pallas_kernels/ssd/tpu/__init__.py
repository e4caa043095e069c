"""SSD in Mosaic TPU kernels: tiling.py what a program holds, chunk.py the arithmetic of one chunk, scan.py the kernels."""
