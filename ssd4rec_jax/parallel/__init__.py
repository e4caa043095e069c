"""Devices and processes: the mesh, the split of the item table, and what processes tell one another."""
