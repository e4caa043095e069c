"""One more event of a history and the best items after it: a live session beside reading the history anew."""
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.logs import SHAPES, random_log
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.live import LiveModel
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.model_folder import item_counts
from ssd4rec_jax.run.saved_run import SavedRun

K = 10
HISTORIES = 10, 1_000, 100_000  # events
EVENTS = 100  # that are timed one by one
TOGETHER = 64  # sessions of one call


def measure_live(config: RunConfig, repeats: int) -> dict[str, Any]:
    """Seconds of an event with its answer, by the length of the history, and what a session takes.

    The log is random and of Amazon Beauty's size. Wall times are medians; CPU times, of all threads, are means, and
    tell more on a machine that is not idle. largest_difference: between the scores of all items after the events and
    those of the history read anew, relative to the largest of them.
    """
    log = random_log('beauty', SHAPES['beauty'])
    network, params = init_network(config.model, log.num_items, config.train.seed)
    mesh = device_mesh()
    live = LiveModel(SavedRun(config, log, mesh, network, params, 1, 1, item_counts(log), None))
    assert not live.recomputes, live.recomputes
    top, rng, rows = TopItems(network, mesh, params), np.random.default_rng(0), []
    for length in HISTORIES:
        history = rng.integers(1, log.num_items + 1, length).astype(np.int32)
        (session,) = live.begin([[]])
        begin = _cost(lambda s=session, h=history: live.extend([s], [log.item_ids[h - 1].tolist()]), 1)
        row = {'history': length, 'begin': begin, 'distinct_items': len(session.held.items)}
        more: list[int] = []
        row['event_and_answer'] = _cost(
            lambda s=session, m=more: m.extend(_event(live, [s], log.item_ids, rng)), EVENTS
        )
        row['answer_without_seen'] = _cost(lambda s=session: live.recommend([s], K, exclude_seen=True), EVENTS)
        row['read_anew'] = _cost(lambda h=history: top([h], k=K), repeats)
        whole = np.concatenate([history, np.asarray(more, np.int32)])
        everything = (found([x], k=log.num_items)[1][0] for found, x in ((live.top, session), (top, whole)))
        ours, anew = (np.sort(scores) for scores in everything)
        row['largest_difference'] = float(np.abs(ours - anew).max() / np.abs(anew).max())
        rows.append(row)
    sessions = live.begin([[1, 2, 3]] * TOGETHER)
    together = _cost(lambda: _event(live, sessions, log.item_ids, rng), repeats)
    return {
        'items': log.num_items, 'k': K, 'histories': rows, 'sessions_together': TOGETHER, 'together': together,
        'state_bytes': sessions[0].state.nbytes,
    }


def _event(live: LiveModel, sessions: list, ids: np.ndarray, rng: np.random.Generator) -> list[int]:
    """An event of each session and the answers after it; the internal ids of the events."""
    items = rng.integers(1, len(ids) + 1, len(sessions))
    live.append(sessions, ids[items - 1].tolist())
    live.recommend(sessions, K)
    return items.tolist()


def _cost(call: Callable[[], Any], times: int) -> dict[str, float]:
    """Median wall seconds and mean CPU seconds of some calls; one before them compiles where there are several."""
    if times > 1:
        call()
    wall, cpu = [], time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        call()
        wall.append(time.perf_counter() - started)
    return {'seconds': float(np.median(wall)), 'cpu_seconds': (time.process_time() - cpu) / times}
