"""What requests hold, and what is said about those that hold something else."""
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

_WHOLE = 2**63 - 1
Id = Annotated[
    Annotated[StrictInt, Field(ge=-_WHOLE, le=_WHOLE)] | Annotated[StrictStr, Field(min_length=1)],
    Field(description='An original id of the log, a text or a whole number.'),
]

# What the library adds to the place of an error in one of the two forms of an id.
_ID_KINDS = 'int', 'str', 'constrained-int', 'constrained-str'


class _Body(BaseModel):
    model_config = ConfigDict(extra='forbid')


class RecommendBody(_Body):
    """Whom to recommend to, and what."""

    users: list[Id] | None = Field(None, description='Ids of users, known to the model or by their events.')
    histories: list[list[Id]] | None = Field(
        None, description='Instead of users: lists of item ids, the oldest first.'
    )
    k: StrictInt = Field(10, ge=1, description='How many items each gets.')
    exclude: list[Id] = Field([], description='Items that nobody gets.')
    only: list[Id] | None = Field(None, description='The items to choose from.')
    exclude_seen: StrictBool = Field(False, description='Leave out what a history holds.')
    skip_unknown: StrictBool = Field(
        False, description='Leave ids out that the model does not have, instead of refusing the request.'
    )
    why: StrictInt = Field(
        0, ge=0, le=5, description='For each item, name so many items of the history that are nearest to it by cosine.'
    )
    titles: StrictBool = Field(False, description="Add the items' titles, where the service has them.")


class EventBody(_Body):
    """One user did something with one item."""

    user: Id
    item: Id
    time: StrictFloat | None = Field(
        None, ge=0, lt=1e11, description='Seconds since 1970; the time of the request where it is not given.'
    )


class EventsBody(_Body):
    """New events, in the order in which they happened. All of them are kept, or none."""

    events: list[EventBody] = Field(min_length=1)


class Nothing(_Body):
    """A question that needs no more than its address."""


class Search(_Body):
    """What is looked for among items or users, and how many are named."""

    search: str
    limit: int


class OneUser(_Body):
    """Whose history is asked for."""

    user: str


class Refused(Exception):
    """A request that is not answered. status: the HTTP status. sentence: what is wrong and what to do."""

    def __init__(self, status: int, sentence: str):
        self.status, self.sentence = status, sentence
        super().__init__(sentence)


def parsed(kind: type[BaseModel], body: bytes) -> Any:
    """A body as an object of `kind`; Refused where it is none."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first['type'] == 'json_invalid':
            raise Refused(400, f'the body is not JSON: {first["msg"].removeprefix("Invalid JSON: ")}') from error
        place = [part for part in first['loc'] if part not in _ID_KINDS]
        what = first['msg'] if len(place) == len(first['loc']) else 'an id is a text or a whole number of 64 bits'
        raise Refused(422, f'{_written(place)}{what}') from error


def _written(place: list[int | str]) -> str:
    """'histories[0][2]: ' and so on; '' for the body as a whole."""
    text = ''.join(f'[{part}]' if isinstance(part, int) else f'.{part}' for part in place).lstrip('.')
    return f'{text}: ' if text else ''

