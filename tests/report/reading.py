"""What a page says, read by a parser that knows nothing of how it is made."""
import html.parser


class Page(html.parser.HTMLParser):
    """texts: all text. tables: {caption: rows of cells}. headings: levels in order. tags: all elements' names."""

    def __init__(self, source: str):
        super().__init__()
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.tags: list[str] = []
        self._rows: list[list[str]] = []
        self._caption: list[str] | None = None
        self._cell: list[str] | None = None
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ('h1', 'h2', 'h3', 'h4'):
            self.headings.append(int(tag[1]))
        elif tag == 'table':
            self._rows = []
        elif tag == 'caption':
            self._caption = []
        elif tag == 'tr':
            self._rows.append([])
        elif tag in ('td', 'th'):
            self._cell = []
        elif tag == 'small' and self._cell is not None:
            self._cell.append(' | ')

    def handle_data(self, data):
        self.texts.append(data.strip())
        for part in (self._caption, self._cell):
            if part is not None:
                part.append(data)

    def handle_endtag(self, tag):
        if tag == 'caption':
            self.tables[''.join(self._caption or [])] = self._rows
            self._caption = None
        elif tag in ('td', 'th'):
            self._rows[-1].append(''.join(self._cell or []))
            self._cell = None

    @property
    def text(self) -> str:
        return ' '.join(self.texts)


def page(path) -> Page:
    return Page(path.read_text())
