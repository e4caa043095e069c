"""The four harnesses in the small form that CI affords; `python -m tests.faults --hours=N` runs the large one."""
import random
import shutil

import pytest

from tests.faults.corruption import Corruptions
from tests.faults.fuzz import Fuzz
from tests.faults.matrix import SCENARIOS, Matrix
from tests.faults.pairs import Pairs

pytestmark = pytest.mark.slow  # Compiling for many meshes and kills of whole runs take minutes.

compiled = pytest.mark.skipif(shutil.which('cc') is None, reason='no C compiler builds the shim')
PREPARE = next(scenario for scenario in SCENARIOS if scenario.name == 'prepare')


@pytest.fixture(scope='module')
def matrix(tmp_path_factory):
    matrix = Matrix(tmp_path_factory.mktemp('matrix'))
    yield matrix
    matrix.close()


@compiled
def test_a_few_kills_and_failing_disks(matrix):
    matrix.disturb(PREPARE, 'kill', 9)
    for how in ('ENOSPC', 'EIO', 'short'):
        matrix.disturb(PREPARE, how, 4)
    matrix.sample(kills=2, errors=2)
    assert matrix.problems == [] and matrix.counts['kills'] == 3 and matrix.counts['injected errors'] >= 3


@pytest.fixture(scope='module')
def corruptions(tmp_path_factory):
    return Corruptions(tmp_path_factory.mktemp('corruptions'))


def test_damage_is_noticed_or_harmless(corruptions):
    corruptions.sample(80, 0)
    assert corruptions.problems == []
    assert corruptions.counts['noticed and mended or passed over'], corruptions.counts


def test_damage_that_leaves_no_answer_is_an_error(corruptions):
    before = corruptions.counts['noticed with an error']
    corruptions.one(random.Random(0), 'run/config.json', 'emptying')
    assert corruptions.problems == [] and corruptions.counts['noticed with an error'] == before + 1, corruptions.counts


@pytest.fixture(scope='module')
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp('fuzz'))


@pytest.mark.parametrize('kind, count', [('configs', 1500), ('folders', 300), ('flags', 60)])
def test_fuzzed_inputs_are_as_the_plain_model_or_refused(fuzz, kind, count):
    getattr(fuzz, kind)(count)
    assert fuzz.problems == []


def test_three_preparers_of_two_logs_in_one_folder(tmp_path):
    pairs = Pairs(tmp_path)
    pairs.preparers(8)
    assert pairs.problems == [] and pairs.counts['preparations side by side'] == 24


@pytest.mark.slow
def test_two_trainings_in_one_workdir(tmp_path):
    pairs = Pairs(tmp_path)
    pairs.trainings(0)
    assert pairs.problems == []


@pytest.mark.slow
def test_two_savers_of_one_model_folder(finished, tmp_path):
    pairs = Pairs(tmp_path)
    pairs.savers(finished / 'run', 40)
    assert pairs.problems == []
