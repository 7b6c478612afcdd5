"""A process of its own that does one verb after another on request, each in a fork: what the tracer kills.

Requests are lines `VERB CASE ROOT`. The fork waits until the tracer is attached (the answer is its process number, the next line
says go), then the answer is how it ended. Reading the links below tells the tracer's log where our own work begins and ends.
"""

import contextlib
import os
import sys

sys.path[:0] = [sys.argv[1], os.path.dirname(os.path.abspath(__file__))]

import changes_support as support  # noqa: E402

from rocm_patch.changes import environment  # noqa: E402
from rocm_patch.changes.places import Locations  # noqa: E402
from rocm_patch.errors import RocmPatchError  # noqa: E402

# The shell that verify starts writes nothing, and killing it is not what this is about.
environment._source = lambda data, settings: []


def serve():
    while request := sys.stdin.readline().split():
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(ready, 1)
            work(*request)
        print(child, flush=True)
        sys.stdin.readline()
        os.write(go, b"x")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os.close(ready)
        os.close(go)


def work(verb, case, root):
    steps = support.CASES[case]
    plan = support.plan_for(steps, Locations(root)) if verb == "apply" else None
    code = 70
    try:
        mark("rocm-patch-begin")
        if verb == "apply":
            support.do_apply(root, steps, plan=plan)
        elif verb == "rollback":
            support.do_rollback(root)
        else:
            support.do_recover(root)
        mark("rocm-patch-end")
        code = 0
    except RocmPatchError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def mark(name):
    with contextlib.suppress(OSError):
        os.readlink("/" + name)


serve()
