"""What the application asks of whoever owns the model, which is its own process or another one."""
import json
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from ssd4rec_jax.serve.bodies import EventsBody, Nothing, OneUser, RecommendBody, Search
from ssd4rec_jax.serve.limits import Limits


class Refusal(BaseModel):
    """A request that the application has refused, to be counted."""

    route: str
    status: int


# What can be asked, by the address that asks it.
KINDS: dict[str, type[BaseModel]] = {
    '/recommend': RecommendBody, '/events': EventsBody, '/ready': Nothing, '/metrics': Nothing, '/about': Nothing,
    '/items': Search, '/users': Search, '/history': OneUser, 'refused': Refusal,
}


class Answer(NamedTuple):
    """An HTTP status, and what the response holds."""

    status: int
    content: bytes


class Calls(Protocol):
    """How questions reach the owner."""

    @property
    def limits(self) -> Limits:
        """What is refused beyond."""

    async def call(self, name: str, asked: BaseModel) -> Answer:
        """The answer to one of KINDS."""


def answer(status: int, value: dict[str, Any]) -> Answer:
    """A value as JSON."""
    return Answer(status, json.dumps(value, allow_nan=False, separators=(',', ':')).encode())


def refusal(status: int, sentence: str) -> Answer:
    """The one sentence of a request that is not answered."""
    return answer(status, {'error': sentence})
