"""A process that runs commands one after another, each with a fault armed in the preloaded shim.

One JSON line per command on stdin, and one on stdout for how it ended. See tests/faults/shim.c.
"""
import ctypes
import errno
import json
import os
import sys
from pathlib import Path

from tests.faults.inside import call

READ, CHANGE, ROOM, WRITE = 1, 2, 4, 8
# name: (what the shim does, the error, whether it stays, the kinds of operations that are counted)
FAULTS = {
    'none': (0, 0, 0, CHANGE | ROOM | WRITE),
    'kill': (1, 0, 0, CHANGE | ROOM | WRITE),
    'short': (2, 0, 0, WRITE),
    'EIO': (3, errno.EIO, 0, CHANGE | ROOM | WRITE),
    'EIO on reading': (3, errno.EIO, 0, READ),
    'ENOSPC': (3, errno.ENOSPC, 1, ROOM | WRITE),
    'EDQUOT': (3, errno.EDQUOT, 1, ROOM | WRITE),
}


def main() -> None:
    shim = ctypes.CDLL(os.environ['LD_PRELOAD'])
    shim.fault_count.restype = ctypes.c_long
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what native code prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        shim.fault_arm(ctypes.c_long(job['at']), *FAULTS[job['how']])
        done = call(job['command'], *job['arguments'], folder=Path(job['folder']))
        count, hit = shim.fault_count(), shim.fault_hit()
        shim.fault_arm(ctypes.c_long(-1), 0, 0, 0, 0)
        answer = {'code': done.code, 'out': done.out, 'err': done.err, 'count': count, 'hit': hit}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
