"""The pages for people: one to try the model, one that says what can be asked. They load nothing from elsewhere."""
import base64
import hashlib
import html
import re
from importlib import resources
from typing import Any

from fastapi import Response

_WORDS = {'string': 'text', 'boolean': 'true or false', 'integer': 'whole number'}
_PARTS = re.compile(r'<(style|script)>(.*?)</\1>', re.DOTALL)


def page_response(text: str) -> Response:
    """HTML under a policy by which its own styles and scripts alone run, and nothing but this service is asked."""
    hashes: dict[str, list[str]] = {'style': [], 'script': []}
    for kind, content in _PARTS.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = '; '.join([
        "default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        "img-src data:", *(f'{kind}-src {" ".join(of)}' for kind, of in hashes.items() if of),
    ])
    return Response(text, media_type='text/html; charset=utf-8', headers={
        'content-security-policy': policy, 'x-content-type-options': 'nosniff', 'referrer-policy': 'no-referrer',
    })


def try_page() -> Response:
    """The page to try the model."""
    return page_response(resources.files(__package__).joinpath('page.html').read_text('utf-8'))


def described(schema: dict[str, Any]) -> Response:
    """An OpenAPI description as a page without scripts."""
    parts = [_HEAD.format(title=html.escape(schema['info']['title']))]
    for path, methods in schema['paths'].items():
        for method, about in methods.items():
            parts.append(f'<h2><code>{method.upper()} {html.escape(path)}</code></h2>')
            parts.append(f'<p>{html.escape(about.get("summary", ""))}. {html.escape(about.get("description", ""))}</p>')
            rows = [(p['name'], p['schema'], p.get('description', '')) for p in about.get('parameters', [])]
            body = about.get('requestBody', {}).get('content', {}).get('application/json', {}).get('schema', {})
            rows += [(name, field, field.get('description', '')) for name, field in body.get('properties', {}).items()]
            parts += [_table(rows)] if rows else []
            for name, kind in body.get('$defs', {}).items():
                fields = [(n, f, f.get('description', '')) for n, f in kind['properties'].items()]
                parts.append(f'<p>{html.escape(name)}: {html.escape(kind.get("description", ""))}</p>{_table(fields)}')
    return page_response('\n'.join(parts))


def _table(rows: list[tuple[str, dict, str]]) -> str:
    lines = [
        f'<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(_kind(field))}</td>'
        f'<td>{html.escape(about)}</td></tr>' for name, field, about in rows
    ]
    return f'<div><table>{"".join(lines)}</table></div>'


def _kind(field: dict[str, Any]) -> str:
    """A field's type in words: 'list of integer or string, or nothing; 10 if not given'."""
    if '$ref' in field:
        return field['$ref'].rpartition('/')[2]
    if 'anyOf' in field:
        kinds = [_kind(one) for one in field['anyOf'] if one.get('type') != 'null']
        text = ' or '.join(kinds)
    elif field.get('type') == 'array':
        text = f'list of {_kind(field["items"])}'
    else:
        text = _WORDS.get(field['type'], field['type'])
    return f'{text}; {field["default"]} if not given' if field.get('default') not in (None, [], '') else text


_HEAD = '''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 52rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.35rem; }} h2 {{ font-size: 1.05rem; margin-top: 1.6rem; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
td {{ border-top: 1px solid #8885; padding: .35rem .6rem .35rem 0; vertical-align: top; }}
td:first-child {{ white-space: nowrap; }}
</style>
<h1>{title}</h1>
<p>The same as <a href="openapi.json">openapi.json</a>, for programs. <a href=".">A page to try the model</a>.</p>'''
