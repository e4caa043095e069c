"""Figures of a running service, in the form that Prometheus reads. No label holds anything that a request sent."""
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = .001, .002, .004, .008, .016, .032, .064, .125, .25, .5, 1, 2, 4, 8


class Metrics:
    """The counters of one service, apart from those of others in the process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            'ssd4rec_requests_total', 'Requests by route and status.', ('route', 'status'), registry=registry
        )
        self.seconds = Histogram(
            'ssd4rec_request_seconds', 'From a whole request to its answer.', ('route',), buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            'ssd4rec_batch_histories', 'Histories in one step of the model.', buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.answers = Counter(
            'ssd4rec_answers_total', 'Answers from a live session or from a history that was read anew.', ('read',),
            registry=registry,
        )
        self.events = Counter('ssd4rec_events_total', 'New events that are kept.', registry=registry)
        self.reloads = Counter('ssd4rec_reloads_total', 'Models that were taken in.', ('result',), registry=registry)
        self.workers = Counter(
            'ssd4rec_worker_restarts', 'HTTP workers that died and were started again.', registry=registry
        )
        self._waiting = Gauge('ssd4rec_waiting_histories', 'Histories that wait for the model.', registry=registry)
        self._sessions = Gauge('ssd4rec_sessions', 'Users whose live sessions are held.', registry=registry)
        self._step = Gauge('ssd4rec_model_step', 'The step of training that answers.', registry=registry)

    def watch(self, waiting: Callable[[], int], step: Callable[[], int], sessions: Callable[[], int]) -> None:
        """Where figures come from that are read when they are asked for."""
        self._waiting.set_function(waiting)
        self._step.set_function(step)
        self._sessions.set_function(sessions)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)
