"""The OpenAPI description: answers are held to it, and requests are made from it, right and wrong ones."""
import pytest

pytest.importorskip('schemathesis')

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.local_calls import LocalCalls
from tests.patient import SECONDS
from tests.serve.conftest import served

OPERATIONS = [
    ('POST', '/recommend'), ('POST', '/events'), ('GET', '/health'), ('GET', '/ready'), ('GET', '/metrics'),
    ('GET', '/about'), ('GET', '/items'), ('GET', '/users'), ('GET', '/history'),
]
IDS = [f'item é{n}' for n in range(4)]


@pytest.fixture(scope='module')
def api(small, tmp_path_factory):
    running = served(small, tmp_path_factory.mktemp('events'), titles={IDS[0]: 'The first'})
    yield schemathesis.openapi.from_asgi('/openapi.json', make_app(LocalCalls(running)))
    running.stop()


def test_every_operation_is_here(api):
    assert {(one.ok().method.upper(), one.ok().path) for one in api.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize('method, path, request_parts', [
    ('POST', '/recommend', {'body': {'users': [100, 101], 'k': 20, 'why': 2, 'titles': True}}),
    ('POST', '/recommend', {'body': {'histories': [IDS[:3], []]}}),
    ('POST', '/events', {'body': {'events': [{'user': 'new', 'item': IDS[0]}]}}),
    ('GET', '/items', {'query': {'search': 'é'}}), ('GET', '/users', {}), ('GET', '/about', {}),
    ('GET', '/history', {'query': {'user': '100'}}), ('GET', '/ready', {}), ('GET', '/metrics', {}),
])
def test_answers_are_as_described(api, method, path, request_parts):
    assert api[path][method].Case(**request_parts).call_and_validate(timeout=SECONDS).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize('method, path', OPERATIONS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), mode=st.sampled_from(GenerationMode))
def test_no_request_makes_the_service_fail(api, method, path, data, mode):
    case = data.draw(api[path][method].as_strategy(mode))
    # The description cannot say which ids the model knows.
    case.call_and_validate(timeout=SECONDS, excluded_checks=[positive_data_acceptance])
