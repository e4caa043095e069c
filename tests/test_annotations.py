"""Every public function and method annotates all of its arguments and its result."""
import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Paths that begin with one of these are not checked yet.
PENDING: tuple[str, ...] = ()
FILES = [
    path for package in ('ssd4rec_jax', 'pallas_kernels', 'experiments')
    for path in (p.relative_to(ROOT).as_posix() for p in sorted((ROOT / package).rglob('*.py')))
    if not path.startswith(PENDING)
]


def public_functions(node: ast.AST, inside_class: bool = False) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """(function, whether it is a method) for each public function below a node that is not nested in another one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            if not child.name.startswith('_'):
                yield child, inside_class
        else:
            yield from public_functions(child, inside_class or isinstance(child, ast.ClassDef))


def missing(source: str) -> list[str]:
    """A text 'function: argument' or 'function: return' for each annotation that public functions lack."""
    found = []
    for function, is_method in public_functions(ast.parse(source)):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args]
        static = any(isinstance(d, ast.Name) and d.id == 'staticmethod' for d in function.decorator_list)
        if is_method and not static:
            named = named[1:]  # self or cls
        named += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
        found += [f'{function.name}: {argument.arg}' for argument in named if argument.annotation is None]
        if function.returns is None:
            found.append(f'{function.name}: return')
    return found


@pytest.mark.parametrize('path', FILES)
def test_public_functions_are_annotated(path):
    assert missing((ROOT / path).read_text()) == []


@pytest.mark.parametrize('source, expected', [
    ('def f(a: int, *b: int, c: int = 1, **d: int) -> int: ...', []),
    ('def f(a, *b, c=1, **d): ...', ['f: a', 'f: c', 'f: b', 'f: d', 'f: return']),
    ('def _f(a): ...', []),
    ('def f() -> None:\n    def g(a): ...', []),
    ('class A:\n    def __init__(self, a): ...\n    def f(self) -> int: ...', []),
    ('class A:\n    @classmethod\n    def f(cls, a) -> int: ...', ['f: a']),
    ('class A:\n    @staticmethod\n    def f(a) -> int: ...', ['f: a']),
    ('class _A:\n    class B:\n        def f(self): ...', ['f: return']),
    ('if True:\n    def f(): ...', ['f: return']),
])
def test_the_test_itself(source, expected):
    assert missing(source) == expected
