"""Devices and processes: the mesh, who holds which part of the item table, what processes tell each other."""
