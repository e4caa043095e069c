"""What answers hold, for the OpenAPI page. Routes write the JSON without these objects; tests compare the two."""
from pydantic import BaseModel, ConfigDict, Field


class _Reply(BaseModel):
    model_config = ConfigDict(extra='forbid')


class Failure(_Reply):
    """Why there is no answer."""

    error: str = Field(description='One sentence.')


class Item(_Reply):
    """An item of the model."""

    item: int | str = Field(description='The original id.')
    title: str = Field('', description='Absent where the item has none or none is asked for.')


class NearItem(Item):
    """An item of the history that is near to a recommended one."""

    cosine: float


class BestItem(Item):
    """A recommended item."""

    score: float
    why: list[NearItem] = Field([], description='Absent where it is not asked for.')


class Answer(_Reply):
    """The items for one user or history, the best one first."""

    user: int | str = Field('', description='The id as it was asked for; absent for a history.')
    reason: str = Field(description="'model', or 'popularity' where no item of the history is known.")
    items: list[BestItem]


class Recommendations(_Reply):
    """The answers in the order of what was asked."""

    answers: list[Answer]


class Kept(_Reply):
    """The number of events that are on the disk now."""

    kept: int


class Alive(_Reply):
    """The process lives."""

    status: str


class Ready(Alive):
    """Requests are answered."""

    step: int = Field(description='The step of training at which the parameters were taken.')
    sessions: str = Field(description="'live', or why the histories of users with new events are read anew.")


class About(_Reply):
    """How much the model knows."""

    items: int
    users: int
    step: int


class Items(_Reply):
    """Items that were looked for."""

    items: list[Item]


class Users(_Reply):
    """Ids of users that were looked for."""

    users: list[str]


class History(Items):
    """The newest events of a user, the newest one first."""

    user: str
    total: int = Field(description='How many events are known.')
