"""Markup from templates: whatever is filled in is escaped, unless it is markup itself."""
import html
import string
from collections.abc import Iterable, Sequence
from importlib import resources

from ssd4rec_jax.show.output import one_line


class Html(str):
    """Text that is markup already, and is filled in as it stands."""


def fill(template: str, **values: object) -> Html:
    """The file of that name in the folder templates, with its $names filled in."""
    text = (resources.files(__package__) / 'templates' / template).read_text('utf-8')
    return Html(string.Template(text).substitute({name: escaped(value) for name, value in values.items()}))


def escaped(value: object) -> Html:
    """Markup as it stands; any other value as text in which nothing is markup and no character hides another."""
    return value if isinstance(value, Html) else Html(html.escape(one_line(str(value))))


def joined(parts: Iterable[object], between: str = '') -> Html:
    """The parts one after another, escaped where they are no markup."""
    return Html(between.join(map(escaped, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element: `class_` stands for class, and _ for - in the names of attributes."""
    written = ''.join(f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items())
    return Html(f'<{name}{written}>{joined(content)}</{name}>')


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls inside its own box; the first cell of a row is the row's heading."""
    return fill(
        'table.html', caption=caption, body=joined(
            tag('tr', tag('th', first, scope='row'), *(tag('td', cell) for cell in cells)) for first, *cells in rows
        ), head=joined(tag('th', name, scope='col') for name in head),
    )


def facts(heading: str, of: Iterable[tuple[object, object]]) -> Html:
    """What and how much, one below another."""
    return fill(
        'facts.html', heading=heading, facts=joined(joined([tag('dt', what), tag('dd', much)]) for what, much in of)
    )
