"""Recommending from a trained-size model: everybody's best items at once, and one user at a time."""
import time
from typing import Any

import numpy as np

from experiments.logs import SHAPES, random_log
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.recommend import TopItems

K, USERS_ALONE = 20, 300


def measure_recommending(config: RunConfig, repeats: int) -> dict[str, Any]:
    """Users per second and milliseconds per user; PyTorch's matmul and topk on the same vectors where it is installed.

    The log is random and of Amazon Beauty's size; 'one' counts calls of a warm process, history to items.
    """
    log = random_log('beauty', SHAPES['beauty'])
    network, params = init_network(config.model, log.num_items, config.train.seed)
    histories = [np.asarray(log.items[log.offsets[u]:log.offsets[u + 1]]) for u in range(log.num_users)]
    top = TopItems(network, device_mesh(), params)
    everybody = _median(lambda: top(histories, k=K, exclude=histories), repeats)
    alone = histories[:USERS_ALONE]
    for history in alone:  # one of each size class, at least
        top([history], k=K)
    times = np.asarray([_seconds(lambda h=history: top([h], k=K)) for history in alone])
    figures = {
        'users': len(histories), 'items': log.num_items, 'k': K,
        'ours': {'seconds': everybody, 'users_per_second': len(histories) / everybody},
        'one': {'p50_seconds': float(np.median(times)), 'p99_seconds': float(np.quantile(times, 0.99))},
    }
    vectors, table = top.vectors(histories), np.asarray(params['item_embedding'], np.float32)
    if (torch := _torch()) is not None:
        seconds = _median(lambda: _torch_top(torch, vectors, table), repeats)
        figures['torch_matmul_topk'] = {'seconds': seconds, 'users_per_second': len(histories) / seconds}
    return figures


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _torch_top(torch: Any, vectors: np.ndarray, table: np.ndarray, at_once: int = 1024) -> None:
    """The scoring half alone: PyTorch is given the users' vectors."""
    items = torch.from_numpy(table.copy()).T  # the copy may be written to, as PyTorch wants
    for start in range(0, len(vectors), at_once):
        torch.topk(torch.from_numpy(vectors[start:start + at_once]) @ items, K)


def _median(call: Any, repeats: int) -> float:
    """Median seconds of some calls, after one that compiles."""
    call()
    return float(np.median([_seconds(call) for _ in range(repeats)]))


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
