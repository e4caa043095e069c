"""Answer over HTTP with a trained model, and take new events in.

    ssd4rec serve --model=DIR --port=8080

DIR is the folder of a run or of a saved model, or a link to one. POST /recommend asks for users or histories, POST
/events appends what users do; / is a page to try it, /docs says what can be asked. New events are kept in the folder
--events before they are acknowledged. SIGHUP, or another folder under the name DIR, takes a new model in without a
break; SIGTERM ends the process after the requests that are in flight. docs/serving.md has limits, units and sizes.
"""
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.serve.limits import Limits

_MODEL = flags.DEFINE_string('model', None, 'Folder of a saved model or of a training run, or a link to one.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at; this machine alone reaches the default.')
_PORT = flags.DEFINE_integer(
    'port', 8080, 'Port to listen at; with 0 the system chooses one, which is named once the model is ready.',
    lower_bound=0, upper_bound=65535,
)
_EVENTS = flags.DEFINE_string('events', None, 'Folder of the log of new events, DIR.events if not given.')
_TITLES = flags.DEFINE_string(
    'titles', None, "What items are called: MovieLens' u.item or movies.csv, or a csv or Parquet file with the columns "
    'item_id and title.'
)
_WORKERS = flags.DEFINE_integer(
    'workers', 0, 'HTTP processes before the one that owns model, sessions and log; 0 has that one speak HTTP itself.',
    lower_bound=0, upper_bound=64,
)
_SESSIONS = flags.DEFINE_integer(
    'sessions', Limits.sessions, 'Users with new events whose live sessions are held in memory.', lower_bound=0,
)
_PAGE = flags.DEFINE_boolean('page', True, 'Serve the page to try the model, which shows ids and histories of users.')


def main() -> int:
    if not _MODEL.value:
        raise ConfigError('give --model, the folder of a saved model or of a training run')
    try:
        from ssd4rec_jax.serve.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}: pip install 'ssd4rec-jax[serve]'") from error
    from ssd4rec_jax.data.titles import titles_of
    from ssd4rec_jax.run.saved_run import load_run
    from ssd4rec_jax.serve.event_log import EventLog
    from ssd4rec_jax.serve.service import Service

    enable_compilation_cache()
    model = Path(_MODEL.value)
    saved = load_run(model)
    beside = model.absolute()
    log = EventLog(Path(_EVENTS.value) if _EVENTS.value else beside.with_name(f'{beside.name}.events'))
    service = Service(
        saved, log, limits=Limits(sessions=_SESSIONS.value),
        titles=titles_of(Path(_TITLES.value)) if _TITLES.value else None,
    )
    serve(service, model, _HOST.value, _PORT.value, page=_PAGE.value, workers=_WORKERS.value)
    return 0


if __name__ == '__main__':
    run(main)
