"""Structured state space duality: one operation, several implementations."""
