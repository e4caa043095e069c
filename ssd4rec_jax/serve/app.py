"""The service as an ASGI application: routes, and what every request and answer has to pass."""
import asyncio
from collections.abc import Mapping

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ssd4rec_jax.serve.bodies import Nothing, OneUser, Refused, Search, parsed
from ssd4rec_jax.serve.calls import KINDS, Answer, Calls, Refusal, answer, refusal
from ssd4rec_jax.serve.limits import Limits
from ssd4rec_jax.serve.metrics import CONTENT_TYPE
from ssd4rec_jax.serve.page import described, try_page
from ssd4rec_jax.serve.replies import About, Alive, Failure, History, Items, Kept, Ready, Recommendations, Users

_SENTENCES = {
    404: 'there is nothing at this address: GET /docs lists what there is',
    405: 'this address takes another method: GET /docs lists what there is',
}
_ALWAYS = {'x-content-type-options': 'nosniff', 'cache-control': 'no-store'}
_BUSY, _CLOSE = {'retry-after': '1'}, {'connection': 'close'}
_SOMETIMES = {429: _BUSY, 503: _BUSY, 408: _CLOSE, 413: _CLOSE}


def make_app(calls: Calls, *, page: bool = True) -> FastAPI:
    """The application before a service. page: with the page to try it, which shows ids and histories of users."""
    app = FastAPI(
        title='ssd4rec serve', description='Recommendations of a trained model, and new events of users.',
        docs_url=None, redoc_url=None, responses={'default': {'model': Failure}},
    )

    def post(path: str, reply: type[BaseModel], about: str) -> None:
        kind = KINDS[path]
        # A body's parts are described within it, and found there by their place in the whole description.
        parts = f'#/paths/~1{path[1:]}/post/requestBody/content/application~1json/schema/$defs/{{model}}'

        async def handle(request: Request) -> Response:
            return await _answered(calls, path, request, kind)

        app.add_api_route(
            path, handle, methods=['POST'], response_model=reply, summary=about, description=kind.__doc__,
            operation_id=path[1:], openapi_extra={'requestBody': {'required': True, 'content': {
                'application/json': {'schema': kind.model_json_schema(ref_template=parts)},
            }}},
        )

    post('/recommend', Recommendations, 'The best next items of users or histories')
    post('/events', Kept, 'New events of users')

    @app.get('/health', response_model=Alive, summary='Whether the process lives')
    async def health() -> Response:
        return _response(answer(200, {'status': 'alive'}))

    @app.get('/ready', response_model=Ready, summary='Whether requests are answered')
    async def ready() -> Response:
        return _response(await calls.call('/ready', Nothing()))

    @app.get('/metrics', response_class=PlainTextResponse, summary='Figures for Prometheus')
    async def metrics() -> Response:
        found = await calls.call('/metrics', Nothing())
        return _response(found) if found.status != 200 else Response(found.content, media_type=CONTENT_TYPE)

    @app.get('/docs', include_in_schema=False)
    async def docs() -> Response:
        return described(app.openapi())

    if page:
        _add_pages(app, calls)

    @app.exception_handler(HTTPException)
    async def not_served(_: Request, error: HTTPException) -> Response:
        return _response(
            refusal(error.status_code, _SENTENCES.get(error.status_code, error.detail)), error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def bad_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _response(refusal(422, f'{first["loc"][-1]}: {first["msg"]}'))

    return app


def _add_pages(app: FastAPI, calls: Calls) -> None:
    """The page to try the model, and what it asks for."""
    shown = try_page()
    text = Query('', max_length=200, description='A part of what is looked for.')
    most = Query(20, ge=1, le=200, description='How many are named.')

    @app.get('/', include_in_schema=False)
    async def try_it() -> Response:
        return shown

    @app.get('/about', response_model=About, summary='How much the model knows')
    async def about() -> Response:
        return _response(await calls.call('/about', Nothing()))

    @app.get('/items', response_model=Items, summary='Items whose title or id holds a text')
    async def items(search: str = text, limit: int = most) -> Response:
        return _response(await calls.call('/items', Search(search=search, limit=limit)))

    @app.get('/users', response_model=Users, summary='Users whose id holds a text, or a sample')
    async def users(search: str = text, limit: int = most) -> Response:
        return _response(await calls.call('/users', Search(search=search, limit=limit)))

    @app.get('/history', response_model=History, summary='The newest events of a user')
    async def history(user: str = Query(min_length=1, description='The id.')) -> Response:
        return _response(await calls.call('/history', OneUser(user=user)))


async def _answered(calls: Calls, route: str, request: Request, kind: type[BaseModel]) -> Response:
    """The response to a POST: the answer, or one sentence that says why there is none."""
    try:
        body = parsed(kind, await _body(calls.limits, request))
    except Refused as refused:
        found = refusal(refused.status, refused.sentence)
    except ClientDisconnect:
        found = refusal(400, 'the client has gone')
    else:
        return _response(await calls.call(route, body))
    await calls.call('refused', Refusal(route=route, status=found.status))
    return _response(found)


async def _body(limits: Limits, request: Request) -> bytes:
    """The body of a POST; Refused where it is no JSON by its type, too large, or too slow to come."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise Refused(415, 'send JSON, with the header content-type: application/json')
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise Refused(413, f'the body has more than {limits.body} bytes')
    except TimeoutError:
        raise Refused(408, f'the body did not come within {limits.body_seconds:g} seconds') from None
    return bytes(body)


def _response(found: Answer, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        found.content, found.status, {**_ALWAYS, **_SOMETIMES.get(found.status, {}), **(headers or {})},
        media_type='application/json',
    )
