"""What may be known of a table before it is read."""
import dataclasses

FEATURE = '+'  # stands before the name of a column that is kept beside the events
PART = 'part'


def columns_read(format: 'TableFormat | JsonLinesFormat') -> dict[str, str]:
    """{'user', 'item', 'time', 'list', and FEATURE + name for each feature: column}, without those that are ''."""
    roles = {role: name for role in ('user', 'item', 'time', 'list') if (name := getattr(format, role, ''))}
    return roles | {FEATURE + name: name for name in format.features}


@dataclasses.dataclass(frozen=True)
class TableFormat:
    """Lines of separated fields.

    separator: as written between two fields: one character, one twice ('::'), or 'space' for runs of blanks.
    user, item, time: names of the columns to read; time is '' where the order of the rows is the order in time.
    columns: names of all columns of a file without a header line; () where the first line names them (RecBole's
      'user_id:token' counts as 'user_id').
    numeric_ids: ids are integers; otherwise they are any text.
    quoted: fields may stand in double quotes, as RFC 4180 says.
    encoding: a codec of Python's; '' is UTF-8, or UTF-16 where a byte order mark says so.
    skipped_lines: before the header, such as Excel's 'sep=;'.
    time_format: of dates that are not ISO 8601, as strptime writes it.
    order_unsure: files without a header are about that have the item first, so that fewer users than items are told of.
    features: names of the columns to keep beside the events.
    list: the column of the items before `item`, in a file whose rows are whole histories; '' in others.
    """

    separator: str
    user: str = 'user_id'
    item: str = 'item_id'
    time: str = 'timestamp'
    columns: tuple[str, ...] = ()
    numeric_ids: bool = False
    quoted: bool = False
    # No part of the representation by which sources are fingerprinted: no official file has any of these.
    encoding: str = dataclasses.field(default='', repr=False)
    skipped_lines: int = dataclasses.field(default=0, repr=False)
    time_format: str = dataclasses.field(default='', repr=False)
    order_unsure: bool = dataclasses.field(default=False, repr=False)
    features: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    list: str = dataclasses.field(default='', repr=False)


@dataclasses.dataclass(frozen=True)
class JsonLinesFormat:
    """One JSON object a line; user, item, time and features are its keys.

    time is '' where the lines stand in order of time.
    """

    user: str
    item: str
    time: str
    time_format: str = dataclasses.field(default='', repr=False)
    features: tuple[str, ...] = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """What a user says of a table of any form; None is found out from the table itself.

    user, item, time: names of the columns; time 'none' takes the order of the rows.
    separator: one character, one twice ('::'), or 'space' for runs of blanks.
    quote: '"', or 'none' where quotes mean nothing.
    columns: of a file without a header line.
    encoding, time_format, features: as in TableFormat.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    separator: str | None = None
    quote: str | None = None
    columns: tuple[str, ...] = ()
    encoding: str | None = None
    time_format: str | None = None
    # No part of the representation, by which frames and files were fingerprinted before there were features.
    features: tuple[str, ...] = dataclasses.field(default=(), repr=False)


GUESS = TableOptions()  # everything is found out
