"""Between `build` and a tool: dies with its parent, gives way to the desktop, goes first when memory ends. Stands alone.

    python -I build_child.py PARENT-PID PROGRAM ARGUMENT...

Without it a `kill -9` of rocm-patch would leave ninja building for hours, and a machine short of memory might kill the session
of the user rather than a compiler.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    # ninja and make end their children when they are told to end; a KILL would orphan the compilers.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        raise SystemExit(143)
    os.nice(10)
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")
    except OSError:
        pass
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - to become the tool is what this is for
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main()
