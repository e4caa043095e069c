"""Structured state space duality (SSD): one operation with several implementations."""
