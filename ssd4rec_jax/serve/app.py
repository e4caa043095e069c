"""The service as an ASGI application: routes, and what every request and answer has to pass."""
import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.serve.bodies import BUSY, EventsBody, RecommendBody, Refused, parsed
from ssd4rec_jax.serve.metrics import CONTENT_TYPE
from ssd4rec_jax.serve.page import described, try_page
from ssd4rec_jax.serve.service import Service

_NOT_READY = 'the model is not ready yet: try again in a second'
_SENTENCES = {
    404: 'there is nothing at this address: GET /docs lists what there is',
    405: 'this address takes another method: GET /docs lists what there is',
}


def make_app(service: Service, *, page: bool = True) -> FastAPI:
    """The application of a service. page: with the page to try it, which shows ids and histories of users."""
    app = FastAPI(
        title='ssd4rec serve', description='Recommendations of a trained model, and new events of users.',
        docs_url=None, redoc_url=None,
    )

    def post(path: str, kind: type[BaseModel], answer: Callable[[Any], Awaitable[dict]], about: str) -> None:
        async def handle(request: Request) -> Response:
            return await _answered(service, path, request, kind, answer)

        app.add_api_route(
            path, handle, methods=['POST'], summary=about, description=kind.__doc__, operation_id=path[1:],
            openapi_extra={'requestBody': {'required': True, 'content': {'application/json': {
                'schema': kind.model_json_schema(ref_template='#/components/schemas/{model}')
            }}}},
        )

    post('/recommend', RecommendBody, service.recommend, 'The best next items of users or histories')
    post('/events', EventsBody, service.append, 'New events of users')

    @app.get('/health', summary='Whether the process lives')
    async def health() -> Response:
        return _json(200, {'status': 'alive'})

    @app.get('/ready', summary='Whether requests are answered')
    async def ready() -> Response:
        if not service.ready:
            raise Refused(503, _NOT_READY, BUSY)
        return _json(200, {'status': 'ready', **service.state()})

    @app.get('/metrics', summary='Figures for Prometheus')
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get('/docs', include_in_schema=False)
    async def docs() -> Response:
        return described(app.openapi())

    if page:
        _add_pages(app, service)

    @app.exception_handler(HTTPException)
    async def not_served(_: Request, error: HTTPException) -> Response:
        return _json(error.status_code, {'error': _SENTENCES.get(error.status_code, error.detail)}, error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _json(422, {'error': f'{first["loc"][-1]}: {first["msg"]}'})

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        return _json(refused.status, {'error': refused.sentence}, refused.headers)

    return app


def _add_pages(app: FastAPI, service: Service) -> None:
    """The page to try the model, and what it asks for."""
    shown = try_page()
    text = Query('', max_length=200, description='A part of what is looked for.')
    most = Query(20, ge=1, le=200, description='How many are named.')

    @app.get('/', include_in_schema=False)
    async def try_it() -> Response:
        return shown

    @app.get('/about', summary='How much the model knows')
    async def about() -> Response:
        return _json(200, service.about())

    @app.get('/items', summary='Items whose title or id holds a text')
    async def items(search: str = text, limit: int = most) -> Response:
        return _json(200, service.find_items(search, limit))

    @app.get('/users', summary='Users whose id holds a text, or a sample')
    async def users(search: str = text, limit: int = most) -> Response:
        return _json(200, service.find_users(search, limit))

    @app.get('/history', summary='The newest events of a user')
    async def history(user: str = Query(min_length=1, description='The id.')) -> Response:
        return _json(200, service.history(user))


async def _answered(
    service: Service, route: str, request: Request, kind: type[BaseModel], answer: Callable[[Any], Awaitable[dict]]
) -> Response:
    """The response to a POST: the answer, or one sentence that says why there is none."""
    started = asyncio.get_running_loop().time()
    try:
        body = parsed(kind, await _body(service, request))
        if not service.ready:
            raise Refused(503, _NOT_READY, BUSY)
        async with asyncio.timeout(service.limits.request_seconds):
            response = _json(200, await answer(body))
    except Refused as refused:
        response = _json(refused.status, {'error': refused.sentence}, refused.headers)
    except TimeoutError:
        response = _json(503, {'error': 'the answer took too long: try again in a second'}, BUSY)
    except TrainingError as error:
        response = _json(500, {'error': str(error)})
    except ClientDisconnect:
        response = _json(400, {'error': 'the client has gone'})
    service.metrics.requests.labels(route, response.status_code).inc()
    service.metrics.seconds.labels(route).observe(asyncio.get_running_loop().time() - started)
    return response


async def _body(service: Service, request: Request) -> bytes:
    """The body of a POST; Refused where it is no JSON by its type, too large, or too slow to come."""
    limits = service.limits
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise Refused(415, 'send JSON, with the header content-type: application/json')
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise Refused(413, f'the body has more than {limits.body} bytes', {'connection': 'close'})
    except TimeoutError:
        raise Refused(408, f'the body did not come within {limits.body_seconds:g} seconds', {'connection': 'close'}) \
            from None
    return bytes(body)


def _json(status: int, value: dict, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(value, allow_nan=False, separators=(',', ':')).encode(), status,
        headers, media_type='application/json',
    )
