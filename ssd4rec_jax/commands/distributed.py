"""Several processes as one run: how they meet, and how all of them stop when one fails."""
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
from absl import flags
from orbax.checkpoint import multihost

from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.show.output import complain

_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Run as one of several processes. TPU pods, SLURM and MPI tell JAX the rest; elsewhere the '
    'three flags below do.',
)
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, with --distributed.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run, with --distributed.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'This process, from 0, with --distributed.')
_CONNECT_SECONDS = flags.DEFINE_integer(
    'connect_seconds', 300, 'How long a process waits for the others to start, with --distributed.', lower_bound=1
)
# A machine that vanishes without a word is missed after this long; a process that dies is noticed at once.
HEARTBEAT_SECONDS = 10
# An error of config or data is mostly every process's, so that one that leaves at once would end the others unheard.
ALIKE_SECONDS = 10
# Process 0 leaves last: without the coordinator that it hosts JAX aborts the others, whatever they are saying.
LAST_SECONDS = 3
_ADVICE = (
    'Check that process 0 was started on the host of --coordinator_address, that its port is open to the others, and '
    'that all of --num_processes were started (none of the three flags is needed on a TPU pod or under SLURM)'
)


def join() -> None:
    """Meet the other processes if the flags ask for it. Comes before anything that uses a device."""
    flags_given = {
        f'--{flag.name}': flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID) if flag.value is not None
    }
    if not _DISTRIBUTED.value:
        if flags_given:
            raise ConfigError(f'{next(iter(flags_given))} needs --distributed')
        return
    if flags_given and len(flags_given) < 3:
        raise ConfigError(
            'give all of --coordinator_address, --num_processes and --process_id, or none of them on a TPU pod or '
            f'SLURM; given: {", ".join(flags_given)}'
        )
    coordinator, processes, process = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if process is not None and processes is not None and not 0 <= process < processes:
        raise ConfigError(f'--process_id={process} must be from 0 to {processes - 1}')
    if coordinator is not None and not re.fullmatch(r'.+:\d+', coordinator):
        raise ConfigError(f'--coordinator_address={coordinator} must be HOST:PORT')
    # JAX itself aborts with a core's dump when its own time is over, so that a sentence has to come before that.
    patience = threading.Timer(_CONNECT_SECONDS.value, _give_up)
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=2 * _CONNECT_SECONDS.value + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f'--distributed: {str(error).strip().splitlines()[0][:300]}. {_ADVICE}') from error
    finally:
        patience.cancel()


def _give_up() -> None:
    where = f' at --coordinator_address={_COORDINATOR.value}' if _COORDINATOR.value else ''
    complain(
        f'error: the processes of the run did not all meet{where} within '
        f'--connect_seconds={_CONNECT_SECONDS.value}. {_ADVICE}'
    )
    os._exit(1)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """End this process at once if its part of a run of several fails, so that the others notice and end as well.

    An ordinary exit would first wait for the others, who wait for this one.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        this = f'process {jax.process_index()} of {jax.process_count()}'
        if isinstance(error, UserError):
            complain(f'error: {this}: {error}')
            _wait_for_the_others()
        elif isinstance(error, KeyboardInterrupt):
            complain(f'{this}: interrupted')
        else:
            if not isinstance(error, jax.errors.JaxRuntimeError):
                traceback.print_exc()
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
            complain(
                f'error: {this} stops: {reason}. Most likely another process of the run has failed: see its output. '
                'The last checkpoint is whole; the same command goes on from it'
            )
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        if jax.process_index() == 0:
            time.sleep(LAST_SECONDS)
        os._exit(1)


def _wait_for_the_others() -> None:
    """Return once every process of the run is here, or after ALIKE_SECONDS if some go on or have gone."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        multihost.get_barrier_sync_fn()(key='failed', timeout_ms=1000 * ALIKE_SECONDS)
