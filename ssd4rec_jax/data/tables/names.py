"""Which columns of a table hold users, items and times: as named by the user, or by the usual names."""
import difflib
import re

from ssd4rec_jax.data.tables.formats import FEATURE, TableOptions
from ssd4rec_jax.errors import DataError

# In order of preference; compared without case, underscores, blanks, and RecBole's types.
USUAL = {
    'user': (
        'user_id', 'user', 'uid', 'reviewerID', 'visitorid', 'customer_id', 'member_id', 'account_id', 'client_id',
        'profile_id', 'device_id', 'viewer_id', 'reader_id', 'shopper_id', 'player_id', 'msno', 'session_id', 'session',
        'author_id', 'username', 'user_name', 'email', 'cookie_id',
    ),
    'item': (
        'item_id', 'item', 'iid', 'parent_asin', 'asin', 'product_id', 'product', 'movie_id', 'video_id', 'track_id',
        'song_id', 'sid', 'article_id', 'book_id', 'artist_id', 'news_id', 'sku', 'goods_id', 'content_id', 'gmap_id',
        'business_id', 'game_id', 'app_id', 'ad_id', 'poi_id', 'venue_id', 'location_id', 'recipe_id', 'isbn', 'ean',
        'anime_id', 'post_id', 'page_id', 'document_id', 'doc_id', 'offer_id', 'listing_id', 'course_id', 'show_id',
    ),
    'time': (
        'timestamp', 'unixReviewTime', 'ts', 'time_ms', 'event_time', 'event_timestamp', 'unix_time', 'unix_timestamp',
        'timestamp_ms', 'time', 'datetime', 'date_time', 'created_at', 'created', 'occurred_at', 'event_date', 'date',
        't_dat', 'purchase_date', 'order_date', 'order_time', 'played_at', 'clicked_at', 'viewed_at', 'visited_at',
    ),
}
_RECBOLE_TYPE = re.compile(r':(token|float)(_seq)?$')
_FLAGS = {'user': '--user_column', 'item': '--item_column', 'time': '--time_column', FEATURE: '--features'}
WITHOUT_TIMES = 'none'


def plain_name(name: str) -> str:
    """A column's name without RecBole's type and blanks around it."""
    return _RECBOLE_TYPE.sub('', name.strip())


def _key(name: str) -> str:
    return re.sub(r'[\s_\-.]', '', plain_name(name)).lower()


def guessed(columns: list[str], role: str) -> str | None:
    """The column with a usual name of users, items or times (role 'user', 'item' or 'time'); None where none has."""
    keys = {_key(name): name for name in reversed(columns)}
    return next((keys[_key(name)] for name in USUAL[role] if _key(name) in keys), None)


def chosen(columns: list[str], options: TableOptions, where: str) -> tuple[dict[str, str], list[str]]:
    """({'user', 'item', 'time', and FEATURE + name for each feature: column}, what was guessed, as sentences).

    'time' is '' where the order of the rows is taken. where: the file, for messages. DataError where a column that was
    named is not there, where one is there twice, or where none can be guessed.
    """
    found, notes = {}, []
    for role in USUAL:
        named = getattr(options, role)
        if role == 'time' and named == WITHOUT_TIMES and named not in columns:
            found[role] = ''
            continue
        name = guessed(columns, role) if named is None else plain_name(named)
        if name is None:
            raise DataError(_missing(columns, role, where))
        if columns.count(name) != 1:
            raise DataError(_wrong(columns, role, name, where))
        found[role] = name
        if named is None and name != USUAL[role][0]:
            notes.append(f'{where}: {role}s are read from column {name!r} ({_FLAGS[role]} names another)')
    if len({*found.values()}) < 3:
        raise DataError(f'{where}: users, items and times need a column each: {found} are named')
    for name in map(plain_name, options.features):
        if columns.count(name) != 1:
            raise DataError(_wrong(columns, FEATURE, name, where))
        found[FEATURE + name] = name
    return found, notes


def _missing(columns: list[str], role: str, where: str) -> str:
    without = ', or take the order of the rows with --time_column=none' if role == 'time' else ''
    return (
        f'{where}: no column {USUAL[role][0]!r} or another usual name of {role}s in the header; found '
        f'{", ".join(columns)}: name it with {_FLAGS[role]}{without}; without a header, name all columns with --columns'
    )


def _wrong(columns: list[str], role: str, name: str, where: str) -> str:
    if name in columns:
        return f'{where}: more than one column {name!r} in the header; found {", ".join(columns)}: rename one of them'
    keys = {_key(column): column for column in columns}
    close = difflib.get_close_matches(_key(name), list(keys), n=1, cutoff=0.5)
    nearest = f'; did you mean {keys[close[0]]!r}?' if close else ':'
    return f'{where}: no column {name!r} in the header; found {", ".join(columns)}{nearest} {_FLAGS[role]} names it'
