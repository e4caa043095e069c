"""What each setting means, read from where it is written once: the docstring of the dataclass that holds it."""
import dataclasses
import inspect
import re

_ENTRY = re.compile(r'(\w+(?:, \w+)*): (.*)')


def meanings(settings: type) -> dict[str, str]:
    """{field: meaning} of a settings dataclass.

    A line 'field: meaning' or 'field, field: meaning' of its docstring begins an entry, and the lines after it that are
    indented go on with it. Fields without an entry are absent. Entries of the classes that it extends count too.
    """
    names = {field.name for field in dataclasses.fields(settings)}
    found: dict[str, str] = {}
    current: list[str] = []
    docstrings = (inspect.cleandoc(cls.__doc__ or '') for cls in reversed(settings.__mro__))
    for line in '\n\n'.join(docstrings).splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry and set(entry[1].split(', ')) <= names:
            current = entry[1].split(', ')
            found |= dict.fromkeys(current, entry[2].strip())
        elif line.startswith('  ') and current:
            found |= {name: f'{found[name]} {line.strip()}' for name in current}
        else:
            current = []
    return found
