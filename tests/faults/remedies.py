"""What the tests of ways out share: the messages that are tested, and logs to provoke them."""
import re
from collections.abc import Callable
from pathlib import Path

from tests.faults.inside import Done

EVALUATE, RECOMMEND = ('evaluate', '--workdir=run'), ('recommend', '--workdir=run', '--users=1', '--k=2')
# The messages whose way out is gone here: texts of the sources, in which {} stands for any text.
TESTED: set[str] = set()


def tries(*said: str) -> Callable[[Callable], Callable]:
    """Mark a test as one that does what these messages say."""
    TESTED.update(said)
    return lambda test: test


def says(message: str, text: str) -> bool:
    """Whether a text holds a message of TESTED."""
    assert message in TESTED
    return re.search('.*'.join(map(re.escape, message.split('{}'))), text, re.DOTALL) is not None


def refused(done: Done, *said: str) -> None:
    """The command failed with one sentence, which holds each of these messages."""
    assert done.code in (1, 2) and not done.is_traceback and done.sentences == 1, done
    assert all(says(message, done.err) for message in said), done.err


def works(done: Done, *unsaid: str) -> Done:
    """The command ended well, without a word of these messages."""
    assert done.code == 0 and not done.is_traceback, done
    assert not any(says(message, done.out + done.err) for message in unsaid), done
    return done


def rows(*header: str, line: str = '{u},{i},{t}', users: int = 12, length: int = 6, start: int = 1_600_000_000) -> str:
    """A log of users with as many interactions with six items."""
    lines = [
        line.format(u=u, i=(u + n) % 6, t=start + 100 * n, n=n, date=f'{n + 1:02}/06/2024')
        for u in range(users) for n in range(length)
    ]
    return '\n'.join([*header, *lines]) + '\n'


LOG = rows('user_id,item_id,timestamp')
HERE = '--dataset=interactions', '--data_dir=log.csv'
PARTS = {f'{part}.csv': rows('user_id,item_id,timestamp', start=1_600_000_000 + 10_000 * n)
         for n, part in enumerate(('train', 'valid', 'test'))}
SPLIT = '--set=data.split=files'


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write each named file, folders included."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
