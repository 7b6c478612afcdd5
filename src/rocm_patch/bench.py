"""The bench of the convolution engine, run in the Python that has torch: ours may have none.

The engine is sent along as a copy: its own package alone, so that nothing else of our environment gets in the way of that Python's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from rocm_patch.errors import EXIT_INCONCLUSIVE, RocmPatchError, UsageError

ENGINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "conv")
NAME = "rocm_patch_conv"
PATIENCE = 20.0
"""Seconds in which an interrupted worker may end its own children and say what it has."""


class BrokenOffError(RocmPatchError):
    """The worker ended before it was done."""

    exit_code = EXIT_INCONCLUSIVE


def answers(interpreter: str, request: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What the worker (`conv/bench_worker.py`) says, as it says it. Ctrl-C is passed on to it, and what it has is still answered.

    Raises:
        UsageError: the interpreter cannot be run, or the worker does not understand the request.
        BrokenOffError: the worker ended before it was done.
    """
    with tempfile.TemporaryDirectory(prefix="rocm-patch-") as folder, tempfile.TemporaryFile() as errors:
        shutil.copytree(ENGINE, os.path.join(folder, NAME), ignore=shutil.ignore_patterns("__pycache__"))
        path = os.pathsep.join(filter(None, [folder, environment.get("PYTHONPATH", "")]))
        try:
            worker = subprocess.Popen(
                [interpreter, "-m", f"{NAME}.bench_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we pass it on
                env={**environment, "PYTHONPATH": path, "ROCM_PATCH_CONV": "0"},
            )
        except OSError as error:
            raise UsageError(f"{interpreter} cannot be run: {error.strerror or error}") from error
        try:
            yield from _conversation(worker, request)
            if worker.wait(PATIENCE):
                raise BrokenOffError(f"{interpreter}: the bench ended with status {worker.returncode}", _last_words(errors))
        finally:
            _end(worker)


def _conversation(worker: subprocess.Popen[bytes], request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    assert worker.stdin is not None  # noqa: S101 - opened above
    assert worker.stdout is not None  # noqa: S101 - opened above
    interrupted = 0

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted += 1
        if interrupted > 1:
            raise KeyboardInterrupt
        worker.terminate()  # it says what it has, and ends

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(dict(request)).encode() + b"\n")
            worker.stdin.flush()
        for line in worker.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise UsageError(str(answer["error"]))
            yield answer
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _end(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(PATIENCE)
    if worker.poll() is None:
        worker.kill()
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _last_words(errors: Any) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read()[-8000:].decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
