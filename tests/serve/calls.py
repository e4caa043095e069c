"""Requests to a service's application in the test process."""
import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.service import Service


class Api:
    """Calls in one event loop: `post(path, body)` gives (status, answer)."""

    def __init__(self, service: Service):
        transport = httpx.ASGITransport(make_app(LocalCalls(service)), raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url='http://service')

    async def post(self, path: str, body: Any) -> tuple[int, dict]:
        """A body that is JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.client.post(path, content=content, headers={'content-type': 'application/json'})
        return answer.status_code, answer.json()

    async def get(self, path: str, **parameters: Any) -> tuple[int, dict]:
        """A JSON answer."""
        answer = await self.client.get(path, params=parameters)
        return answer.status_code, answer.json()


def calling(service: Service, f: Callable[[Api], Awaitable[Any]]) -> Any:
    """What f returns, with an Api of the service."""
    async def within() -> Any:
        api = Api(service)
        async with api.client:
            return await f(api)
    return asyncio.run(within())


def post(service: Service, path: str, body: Any) -> tuple[int, dict]:
    """One request."""
    return calling(service, lambda api: api.post(path, body))
