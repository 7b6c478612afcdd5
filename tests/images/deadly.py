"""A child of `pool` that does what readers must not."""

from __future__ import annotations

import os
import signal
import sys

from rocm_patch.images import worker


def main():
    worker.serve(sys.stdin, answer)


def answer(task):
    if task["do"] == "tell and spin":
        yield {"pid": os.getpid()}
    if task["do"] in ("spin", "tell and spin"):
        while True:
            pass
    if task["do"] == "kill":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task["do"] == "raise":
        yield {"rows": [1 / 0]}
    if task["do"] == "memory":
        yield {"rows": len(bytearray(1 << 30))}
    if task["do"] == "babble":
        print("hello")
    if task["do"] == "long":
        for _ in range(4):
            yield {"long": "a" * (30 << 20)}
    if task["do"] == "too long":
        yield {"long": "a" * (34 << 20)}
    yield {"rows": []}
