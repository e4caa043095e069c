"""A command's malloc asks for huge pages, by one replacement of the process; nothing else is replaced."""
import contextlib
import subprocess
import sys

import pytest

from ssd4rec_jax.commands import allocator

COMMAND = ['-m', '--dataset=kuairand']
PYTHON = [sys.executable, '-X', 'dev', '-m', 'experiments.train', '--dataset=kuairand']
HUGE = 'glibc.malloc.hugetlb=1'


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets a machine and a process up; what the process does about its allocator is what it returns."""

    def has(argv, *, tunables=None, pages='always [madvise] never', libc='glibc 2.36'):
        done = {}
        pages_file = tmp_path / 'enabled'
        pages_file.write_text(pages)
        monkeypatch.setattr(allocator, '_HUGE_PAGES', pages_file if pages else tmp_path / 'none')
        monkeypatch.setattr(allocator.os, 'confstr', lambda name: libc)
        monkeypatch.setattr(sys, 'platform', 'linux')
        monkeypatch.setattr(sys, 'argv', argv)
        monkeypatch.setattr(sys, 'orig_argv', PYTHON)
        monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
        if tunables is not None:
            monkeypatch.setenv('GLIBC_TUNABLES', tunables)

        def replace(path, argv):
            done['replaced'] = path, argv, allocator.os.environ['GLIBC_TUNABLES']
            raise SystemExit

        monkeypatch.setattr(allocator.os, 'execv', replace)
        monkeypatch.setattr(allocator, '_keep_freed_memory', lambda: done.update(keeps=True))
        with contextlib.suppress(SystemExit):
            allocator.tune_allocator()
        return done

    return has


@pytest.mark.parametrize('tunables, then', [
    (None, HUGE), ('', HUGE), ('glibc.malloc.check=1', f'glibc.malloc.check=1:{HUGE}'),
])
def test_a_command_replaces_itself(machine, tunables, then):
    assert machine(COMMAND, tunables=tunables) == {'replaced': (sys.executable, PYTHON, then)}


def test_the_console_script_replaces_itself(machine):
    assert machine(['/venv/bin/ssd4rec', 'train']) == {'replaced': (sys.executable, PYTHON, HUGE)}


@pytest.mark.parametrize('tunables', [HUGE, f'glibc.malloc.check=1:{HUGE}', 'glibc.malloc.hugetlb=2'])
def test_once(machine, tunables):
    assert machine(COMMAND, tunables=tunables) == {}


@pytest.mark.parametrize('argv, settings', [
    (['/a/experiments/train.py', '-m'], {}),
    ([''], {}),
    (COMMAND, dict(tunables='glibc.malloc.hugetlb=0')),
    (COMMAND, dict(pages='always madvise [never]')),
    (COMMAND, dict(pages='')),
    (COMMAND, dict(libc='glibc 2.34')),
    (COMMAND, dict(libc=None)),
])
def test_freed_memory_is_kept_elsewhere(machine, argv, settings):
    assert machine(argv, **settings) == {'keeps': True}


def test_the_setting_reaches_a_command_and_its_arguments_stay(monkeypatch):
    if not allocator._can_have_huge_pages():
        pytest.skip('no glibc 2.35, or a kernel without huge pages')
    monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
    shown = subprocess.run(
        [sys.executable, '-i', '-m', 'ssd4rec_jax.commands.devices', '--flag', 'a b'],
        text=True, capture_output=True, check=True,
        input='print([os.environ["GLIBC_TUNABLES"], *sys.argv[1:]])\n',
    )
    assert shown.stdout.strip() == str([HUGE, '--flag', 'a b'])
