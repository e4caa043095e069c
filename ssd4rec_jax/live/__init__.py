"""Histories that grow while a model answers: what is kept of each, and its best items after every event."""
from ssd4rec_jax.live.live_model import LiveModel
from ssd4rec_jax.live.session import Session

__all__ = ['LiveModel', 'Session']
