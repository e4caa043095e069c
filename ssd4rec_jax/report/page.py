"""The frame of a page: its head, its tiles and its sections."""
import datetime
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ssd4rec_jax.files import replace_file
from ssd4rec_jax.report.markup import Html, fill, joined, tag

RENEWED_SECONDS = 30  # between two looks of an open page at its file, while a run trains


class Section(NamedTuple):
    """A part of a page: the name that links use, its heading and what is in it."""

    name: str
    heading: str
    body: Html


class Tile(NamedTuple):
    """A figure that is seen first: what it is, how much, and a word more."""

    what: str
    value: str
    more: str = ''


def page(
    kind: str, title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section], *, is_live: bool = False
) -> Html:
    """A whole page. is_live: it looks at its own file again every RENEWED_SECONDS."""
    now = datetime.datetime.now(datetime.UTC)
    return fill(
        'page.html', kind=kind, title=title, lead=lead, style=fill('style.css'),
        refresh=fill('refresh.html', seconds=RENEWED_SECONDS) if is_live else '',
        tiles=tag('dl', *map(_tile, tiles), class_='tiles') if tiles else '',
        links=joined(tag('li', tag('a', section.heading, href=f'#{section.name}')) for section in sections),
        sections=joined(fill('section.html', **section._asdict()) for section in sections),
        footer=f'Written by ssd4rec-jax {metadata.version("ssd4rec-jax")} on {now:%Y-%m-%d at %H:%M} UTC. The page is '
        'whole in itself and asks no network for anything.',
    )


def write_page(path: Path, content: Html) -> None:
    """Write a page; the file is either the old one or the whole new one. UserError if it cannot be written."""
    replace_file(path, lambda out: out.write(content.encode()))


def _tile(tile: Tile) -> Html:
    return tag('div', tag('dt', tile.what), tag('dd', tile.value, tag('small', tile.more) if tile.more else ''))
