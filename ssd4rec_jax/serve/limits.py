"""How much one request may ask for, and how long anything may take."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is refused beyond, in numbers and seconds.

    body: bytes of a request. id_length: characters of an id. histories: users or histories in one request. history:
    items in one history. k: items in one answer. ids: entries of `exclude` and `only`. events: new events in one
    request. queue: histories that may wait for the model, and requests that may wait for the disk. sessions: of users,
    which are held in memory.

    header_seconds, body_seconds: for a client to send the head and the body of a request. request_seconds: from a whole
    request to its answer. reading_seconds: for a client to take an answer that the system cannot hold for it.
    idle_seconds: an open connection without a request. shutdown_seconds: for the requests that are in flight when the
    process is told to end. connections: open at once.
    """

    body: int = 1 << 20
    id_length: int = 256
    histories: int = 64
    history: int = 4096
    k: int = 100
    ids: int = 10_000
    events: int = 1000
    queue: int = 1024
    sessions: int = 4096
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    request_seconds: float = 10.0
    reading_seconds: float = 10.0
    idle_seconds: float = 15.0
    shutdown_seconds: float = 20.0
    connections: int = 2000
