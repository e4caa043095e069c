"""Memory that cannot be had is foretold, whatever limits it."""
import resource

import pytest

from ssd4rec_jax.parallel import out_of_memory
from ssd4rec_jax.parallel.free_memory import available_bytes
from tests.faults.inside import TINY, call, refused, write_log


def test_memory_that_cannot_be_had_is_foretold(tmp_path, monkeypatch):
    write_log(tmp_path / 'log.csv')
    monkeypatch.setattr(out_of_memory, 'available_bytes', lambda: 30_000)
    refused(
        call('train', *TINY, folder=tmp_path), 'out of memory in the train step', 'can be had here', 'model.hidden_size'
    )


def test_an_address_space_limit_counts(monkeypatch):
    monkeypatch.setattr(resource, 'getrlimit', lambda which: (1 << 20, 1 << 20))
    assert available_bytes() == 0, 'this process holds more already'
    monkeypatch.setattr(resource, 'getrlimit', lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (available_bytes() or 0) > 1 << 20


@pytest.mark.parametrize('files, available', [
    ({}, 500 << 10),
    ({  # version 2: the group above is the narrower one, and its page cache can be taken back
        'proc/self/cgroup': '0::/pod/job',
        'proc/self/mountinfo': '30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw',
        'sys/fs/cgroup/pod/job/memory.max': 'max', 'sys/fs/cgroup/pod/job/memory.current': '40000',
        'sys/fs/cgroup/pod/memory.max': '100000', 'sys/fs/cgroup/pod/memory.current': '60000',
        'sys/fs/cgroup/pod/memory.stat': 'anon 50000\ninactive_file 7000\nactive_file 3000',
    }, 50_000),
    ({  # version 1
        'proc/self/cgroup': '5:cpu,memory:/job\n1:name=systemd:/job\n0::/job',
        'proc/self/mountinfo': (
            '31 23 0:29 / /groups/cpu rw - cgroup cgroup rw,cpuset\n'
            '32 23 0:30 / /groups/memory rw shared:4 - cgroup cgroup rw,cpu,memory'
        ),
        'groups/cpu/job/memory.limit_in_bytes': '1', 'groups/cpu/job/memory.usage_in_bytes': '1',
        'groups/memory/job/memory.limit_in_bytes': '90000', 'groups/memory/job/memory.usage_in_bytes': '30000',
        'groups/memory/job/memory.stat': 'inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 0',
        'groups/memory/memory.limit_in_bytes': '9223372036854771712', 'groups/memory/memory.usage_in_bytes': '70000',
    }, 60_500),
    ({  # a container that sees its own group as the top, and names it as its host does
        'proc/self/cgroup': '4:memory:/docker/a1',
        'proc/self/mountinfo': '32 23 0:30 /docker/a1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory',
        'sys/fs/cgroup/memory/memory.limit_in_bytes': '8000', 'sys/fs/cgroup/memory/memory.usage_in_bytes': '9000',
    }, 0),
    ({  # a process that was moved out of the groups that its container shows
        'proc/self/cgroup': '0::/../b2', 'proc/self/mountinfo': '30 23 0:26 / /sys/fs/cgroup rw - cgroup2 none rw',
        'sys/fs/cgroup/memory.max': '9000', 'sys/fs/cgroup/memory.current': '2000',
    }, 7000),
])
def test_the_limit_of_a_container_counts(tmp_path, files, available):
    files = {'proc/meminfo': 'MemTotal: 900 kB\nMemAvailable: 400 kB\nSwapFree: 100 kB\nHugePages_Free: 0', **files}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + '\n')
    assert available_bytes(tmp_path) == available
    assert available_bytes(tmp_path / 'elsewhere') is None
