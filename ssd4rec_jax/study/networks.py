"""The networks beside SSD4Rec that a study trains."""
import importlib
from typing import Any


def peer_networks() -> dict[str, dict[str, Any]]:
    """{name: its published settings, by the keys of --set}."""
    try:
        peers = importlib.import_module('ssd4rec_jax.peers')
    except ModuleNotFoundError:
        return {}
    return {name: peers.published(name) for name in peers.NETWORKS}
