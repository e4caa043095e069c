"""Every message in the sources that names a command, a flag, a setting, an extra or another way out, by ast."""
import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = 'ssd4rec_jax', 'experiments', 'pallas_kernels'
_NAMES_A_WAY_OUT = re.compile(
    r'(?<=[^\w-])--[\w{]'  # a flag, but not the one whose value is wrong, which begins a sentence
    r'|python -m|pip install|\bssd4rec [a-z]|\bcommands?\b|\bagain\b|\banew\b|Ctrl-C'
    r'|\b[A-Z][A-Z0-9_]{4,}=|\b[Ll]ower\b|\b(set|needs) (data|model|train)\.|data\.max_history would'
)
# What a flag or an option means is a description; so is what a module says of itself in its docstring.
_DESCRIBING = 'flags.DEFINE', 'parser.add', 'add_argument', 're.compile'


def messages() -> Iterator[tuple[str, str]]:
    """(file:line, text) of each such message, values in an f-string as {}."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob('*.py')):
            tree = ast.parse(file.read_text())
            for line, text in _texts(tree):
                if ' ' in text.strip() and _NAMES_A_WAY_OUT.search(text):
                    yield f'{file.relative_to(ROOT)}:{line}', text


def _texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, ''.join(str(part.value) if isinstance(part, ast.Constant) else '{}' for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith(_DESCRIBING)):
        has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
        docstring = node.body[0] if has_docstring else None  # type: ignore[attr-defined]
        for child in ast.iter_child_nodes(node):
            if child is not docstring:
                yield from _texts(child)
