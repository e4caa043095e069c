"""Questions to the service of this process."""
import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from absl import logging
from pydantic import BaseModel

from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.serve.bodies import EventsBody, RecommendBody, Refused
from ssd4rec_jax.serve.calls import Answer, Refusal, answer, refusal
from ssd4rec_jax.serve.limits import Limits
from ssd4rec_jax.serve.service import Service

_WHEN_READY = RecommendBody, EventsBody


class LocalCalls:
    """Calls (ssd4rec_jax.serve.calls) that a service answers, with a limit of time, and counts."""

    def __init__(self, service: Service):
        self._service = service
        self._answers: dict[str, Callable[[Any], Any]] = {
            '/recommend': service.recommend, '/events': service.append, '/ready': lambda _: service.state(),
            '/about': lambda _: service.about(), '/items': service.find_items, '/users': service.find_users,
            '/history': service.history,
        }

    @property
    def limits(self) -> Limits:
        """The service's."""
        return self._service.limits

    async def call(self, name: str, asked: BaseModel) -> Answer:
        """The answer, or one sentence that says why there is none."""
        metrics, clock = self._service.metrics, asyncio.get_running_loop().time
        if name == '/metrics':
            return Answer(200, metrics.text())
        if isinstance(asked, Refusal):
            metrics.requests.labels(asked.route, asked.status).inc()
            return Answer(204, b'')
        started = clock()
        found = await self._answer(name, asked)
        if isinstance(asked, _WHEN_READY):
            metrics.requests.labels(name, found.status).inc()
            metrics.seconds.labels(name).observe(clock() - started)
        return found

    async def _answer(self, name: str, asked: BaseModel) -> Answer:
        if not self._service.ready and (name == '/ready' or isinstance(asked, _WHEN_READY)):
            return refusal(503, 'the model is not ready yet: try again in a second')
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                value = self._answers[name](asked)
                return answer(200, await value if inspect.isawaitable(value) else value)
        except Refused as refused:
            return refusal(refused.status, refused.sentence)
        except TimeoutError:
            return refusal(503, 'the answer took too long: try again in a second')
        except TrainingError as error:
            return refusal(500, str(error))
        except Exception:  # Whoever asked must hear of it, also from another process.
            logging.exception('%s failed', name)
            return refusal(500, 'the service failed at this request: what it printed says why')
