"""Recommend next items with a run's best checkpoint or a saved model.

    ssd4rec recommend --workdir=RUN --users=ID,ID --k=10 --exclude_seen
    ssd4rec recommend --workdir=RUN --users=FILE --exclude=ID,ID --only=FILE
    ssd4rec recommend --workdir=RUN --users=all --output=recommended.parquet
    ssd4rec recommend --workdir=RUN --users=all --output=FOLDER --distributed   # on every host of a pod
    ssd4rec recommend --workdir=RUN --history=ITEM,ITEM,ITEM
    ssd4rec recommend --workdir=RUN --histories=FILE.jsonl --output=recommended.csv

Ids that hold commas, quotes or outer blanks are given as a JSON list: --history='["red, blue", "i5"]'. Files of ids
have one on each line; '-' is stdin. A line of --histories is a JSON list of item ids or
{"user": "u1", "history": [...]}.

Users are read with their whole history. Prints tab-separated lines: user (or 'history', or a line's number), rank,
item, score. In ids a backslash is doubled, control characters are written as in '\\n', and a first '=', '+', '-' or '@'
that begins no number as in '\\x3d', so that no id can forge a line or be taken for a formula. --output writes the
columns user, rank, item, score, reason to a .parquet, .csv or .jsonl file, with ids as they are; reason is 'popularity'
where a history holds no known item.

Several processes (--distributed) answer --users=all together and write a folder, each process one file with an equal
share of the users, part-00001-of-00004.parquet and so on. A file appears whole. The same command again computes the
files that are missing.

Exit code: 0; 3 where ids that the model does not know were left out, which stderr counts and names; 1 where nothing was
answered for another reason.
"""
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import polars as pl
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssd4rec_jax.answers import AT_ONCE
from ssd4rec_jax.commands import distributed
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.id_lists import HOW, histories_in_file, ids_in_file, ids_of, ids_or_file
from ssd4rec_jax.commands.k_flag import list_length
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.commands.parts_folder import check_parts_folder, missing_parts, part_name
from ssd4rec_jax.commands.table_file import check_table_file, write_table
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.errors import UnknownIds, UserError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.parallel.processes import agree, is_first, on_first, several, together
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.show.output import complain, shown_id, write_stdout

UNKNOWN_IDS = 3  # the exit code
EVERYBODY = 'all'

_USERS = flags.DEFINE_string('users', None, "Users of the log: ids separated by commas, 'all', a file of ids, or '-'.")
_USERS_FILE = flags.DEFINE_string('users_file', None, "File of user ids, one on each line; '-' is stdin.")
_HISTORY = flags.DEFINE_string('history', None, 'Item ids in time order, separated by commas.')
_HISTORIES = flags.DEFINE_string('histories', None, "JSON lines file with a history on each line; '-' is stdin.")
_EXCLUDE_SEEN = flags.DEFINE_bool('exclude_seen', False, 'Leave out items of the history.')
_EXCLUDE = flags.DEFINE_string('exclude', None, 'Items to leave out for everybody: ids or a file of ids.')
_ONLY = flags.DEFINE_string('only', None, 'Items to choose from: ids or a file of ids.')


class _Asked(NamedTuple):
    """Some of what is asked for: users, or histories with their names."""

    users: list[str] | str | None
    histories: list[list[str]] | None = None
    names: list[str] | None = None


class _Wish(NamedTuple):
    """What is asked of everybody alike."""

    k: int
    exclude_seen: bool
    exclude: list[str]
    only: list[str] | None

    def described(self) -> dict[str, Any]:
        """Short JSON values that differ where the wishes do."""
        ids = {'exclude': self.exclude, 'only': self.only}
        digests = {name: of and hashlib.sha256(json.dumps(of).encode()).hexdigest() for name, of in ids.items()}
        return {'k': self.k, 'exclude_seen': self.exclude_seen, **digests}


def main() -> int:
    distributed.join()
    with distributed.failing_together():
        return _recommend()


def _recommend() -> int:
    workdir = required_workdir()
    if several():
        if _USERS.value != EVERYBODY:
            raise UserError('several processes answer --users=all: run other questions as one process')
        path = together(lambda: check_parts_folder('--output', OUTPUT.value))
    else:
        path = check_table_file('--output', OUTPUT.value) if OUTPUT.value else None
    asked, total = _asked()
    wish = _Wish(
        list_length(10), _EXCLUDE_SEEN.value, ids_or_file('--exclude', _EXCLUDE.value) if _EXCLUDE.value else [],
        ids_or_file('--only', _ONLY.value) if _ONLY.value else None,
    )
    enable_compilation_cache()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        recommender = Recommender.load(workdir, model_shards=MODEL_SHARDS.value)
        if several():
            assert path is not None
            _write_parts(path, recommender, wish)
        elif path:
            everybody = recommender.num_users if _USERS.value == EVERYBODY else None
            write_table(path, _with_bar(_frames(recommender, asked, wish), total or everybody))
        else:
            for frame in _frames(recommender, asked, wish):
                write_stdout(_lines(frame))
    unknown = _summed([w.message for w in told if isinstance(w.message, UnknownIds)])
    others = [str(w.message) for w in told if not isinstance(w.message, UnknownIds)]
    for message in dict.fromkeys([*others, *map(str, unknown)]) if is_first() else ():
        complain(f'warning: {message}')
    if not unknown:
        return 0
    if is_first():
        complain(f'Ids on the command line are {HOW}')
    return UNKNOWN_IDS


def _write_parts(path: Path, recommender: Recommender, wish: '_Wish') -> None:
    """Answer everybody with all processes, part after part, each of which one process writes."""
    parts = jax.process_count()
    asked = {'model': recommender.fingerprint, 'users': recommender.num_users, **wish.described()}
    agree({'what is asked': asked})

    def missing() -> str:
        return f'{sum(1 << number for number in missing_parts(path, parts, asked)):x}'

    left = int(on_first(missing), 16)
    numbers = [number for number in range(parts) if left >> number & 1]
    frames = (
        (number, recommender.recommend_in_parts(EVERYBODY, share=(number, parts), **wish._asdict()))
        for number in numbers
    )
    for number, own in frames:
        own = _with_bar(own, -(-recommender.num_users // parts))
        if number == jax.process_index():
            write_table(path / part_name(number, parts), own)
        else:  # Every process has a share of the work, whoever writes the answers.
            for _ in own:
                pass
    together(lambda: None)  # None leaves while another one writes, so that all fail together.


def _summed(told: list[UnknownIds]) -> list[UnknownIds]:
    """One of each argument. Histories come in parts, each with its own; the other arguments are the same each time."""
    found: dict[str, UnknownIds] = {}
    for one in told:
        before = found.setdefault(one.argument, one)
        if one is not before and one.argument == 'histories':
            found['histories'] = UnknownIds(
                'histories', before.missing + one.missing, before.asked + one.asked, before.first
            )
    return list(found.values())


def _asked() -> tuple[Iterable[_Asked], int | None]:
    """(what is asked for, in parts; how many histories that is, None where only the model or the file's end tells)."""
    given = [flag for flag in (_USERS, _USERS_FILE, _HISTORY, _HISTORIES) if flag.value is not None]
    if len(given) != 1:
        raise UserError(
            'give one of --users (of the log; --users=all for all of them), --users_file, --history and --histories'
        )
    if _HISTORIES.value is not None:
        return _parts_of_file(_HISTORIES.value), None
    if _HISTORY.value is not None:
        return [_Asked(None, [ids_of('--history', _HISTORY.value)], ['history'])], 1
    if _USERS.value == EVERYBODY:
        return [_Asked(EVERYBODY)], None
    if _USERS_FILE.value is not None:
        users = ids_in_file('--users_file', _USERS_FILE.value)
    else:
        users = ids_or_file('--users', _USERS.value or '')
    return [_Asked(users)], len(users)


def _parts_of_file(name: str) -> Iterator[_Asked]:
    lines = histories_in_file('--histories', name)
    while part := list(itertools.islice(lines, AT_ONCE)):
        yield _Asked(None, [history for _, history in part], [user for user, _ in part])


def _frames(recommender: Recommender, parts: Iterable[_Asked], wish: _Wish) -> Iterator[pl.DataFrame]:
    """The answers to all that is asked for: frames with the columns user, rank, item, score, reason."""
    for users, histories, names in parts:
        named = pl.Series('user', names, pl.String)
        frames = recommender.recommend_in_parts(users, histories, **wish._asdict())
        for frame in frames:
            yield frame if names is None else frame.with_columns(named.gather(frame['user']))


def _lines(frame: pl.DataFrame) -> str:
    rows = frame.select('user', 'rank', 'item', 'score').iter_rows()
    return ''.join(f'{shown_id(user)}\t{rank}\t{shown_id(item)}\t{score:.6f}\n' for user, rank, item, score in rows)


def _with_bar(frames: Iterable[pl.DataFrame], total: int | None) -> Iterator[pl.DataFrame]:
    """The frames, with a progress bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn('recommend'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        transient=True, disable=not (console.is_terminal and is_first()),
    ) as bar:
        task = bar.add_task('', total=total)
        for frame in frames:
            yield frame
            bar.advance(task, frame['user'].n_unique())


if __name__ == '__main__':
    run(main)
