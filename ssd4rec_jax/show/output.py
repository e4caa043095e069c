"""Text on its way to stdout and stderr: it forges no line, and a stream that takes no more ends nothing else."""
import os
import re
import sys
from typing import IO, Any

from ssd4rec_jax.errors import UserError

# Control characters, line and paragraph separators, and marks that change the direction of what follows.
_UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?', re.ASCII)
_NAMED = {'\n': '\\n', '\t': '\\t', '\r': '\\r'}


class StdoutClosed(Exception):
    """Whoever read stdout has gone, as in `| head`."""


def one_line(text: str) -> str:
    """The text with its control characters as Python writes them ('\\n', '\\x1b')."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def shown_id(original: object) -> str:
    """An original id as the commands print it: unique, without control characters, and never a spreadsheet's formula.

    A backslash is doubled, so that no id looks like another's escape. A first '=', '+', '-' or '@' is written as
    '\\x3d' and so on, except in a number.
    """
    text = one_line(str(original).replace('\\', '\\\\'))
    if text[:1] in ('=', '+', '-', '@') and not _NUMBER.fullmatch(text):
        text = f'\\x{ord(text[0]):02x}{text[1:]}'
    return text


def write_stdout(text: str) -> None:
    """Write a command's answer and have it delivered.

    StdoutClosed where nobody reads it any more, UserError where it cannot be written or shown.
    """
    try:
        if sys.stdout is None:
            raise UserError('stdout is closed: there is nowhere to write the answer to')
        sys.stdout.write(text)
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        shown = one_line(error.object[error.start:error.end][:20]).encode('ascii', 'backslashreplace').decode()
        raise UserError(
            f"stdout's encoding, {error.encoding}, cannot show {shown}: set PYTHONIOENCODING=utf-8"
        ) from error
    except BrokenPipeError as error:
        discard(sys.stdout)
        raise StdoutClosed from error
    except (OSError, ValueError) as error:
        discard(sys.stdout)
        raise UserError(f'the answer cannot be written to stdout: {error}') from error


def complain(text: str) -> None:
    """Write a line to stderr, if anybody still takes it."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Have what is still to be written to a stream vanish, so that Python does not fail over it when it ends."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    except (OSError, ValueError, AttributeError):
        pass


class Lenient:
    """A text stream that shows what it can: other characters become '?', and all is left out once it takes no more."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream
        self.encoding = getattr(stream, 'encoding', None) or 'utf-8'

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text.encode(self.encoding, 'replace').decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError('there is no stream')
        return self._stream.fileno()

    def _try(self, action: Any) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except (OSError, ValueError):
            discard(self._stream)
            self._stream = None


def _escaped(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    return f'\\x{ord(character):02x}' if ord(character) < 0x100 else f'\\u{ord(character):04x}'
