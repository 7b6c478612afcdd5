"""Run PyTorch's own tests of convolution twice, with the engine and without, and say what differs.

    python tools/pytorch_tests.py PATH-TO-PYTORCH/test/nn/test_convolution.py [-k EXPRESSION] [-o FILE]

PyTorch's tests are not in its wheels: PATH is in a checkout of the release that is installed (`git clone --depth 1 -b v2.13.0 ...`). Needs
torch, pytest, numpy and expecttest in the Python that runs it. Exit status 1: a test fails with the engine that passes without it.

This file is also the pytest plugin that switches the engine on in the second run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
SWITCH = "ROCM_PATCH_PYTORCH_TESTS_STATUS"
"""In the environment of the second run: the file that the engine's status goes to."""


def pytest_configure(config):  # noqa: ARG001
    if SWITCH in os.environ:
        from rocm_patch import conv

        conv.enable()


def pytest_unconfigure(config):  # noqa: ARG001
    if SWITCH in os.environ:
        from rocm_patch import conv

        Path(os.environ[SWITCH]).write_text(json.dumps(conv.status()), encoding="utf-8")


def run(path: Path, expression: str, status: Path | None) -> dict[str, tuple[str, str]]:
    """{test: (outcome, reason)} of one run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "pytorch_tests", "-p", "no:randomly", "-p", "no:cacheprovider"]
        command += [
            "-W",
            "ignore",
            f"--junitxml={report}",
            "--rootdir",
            str(path.parent),
            "-c",
            os.devnull,
            *(["-k", expression] if expression else []),
        ]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(SOURCE), os.environ.get("PYTHONPATH", "")])}
        variables.pop(SWITCH, None)
        ended = subprocess.run(
            command,
            env={**variables, **({SWITCH: str(status)} if status else {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not report.exists():
            raise SystemExit(f"pytest ended with {ended.returncode} and no report: {ended.stderr[-2000:]}")
        return dict(map(outcome, ElementTree.parse(report).getroot().iter("testcase")))


def outcome(case: ElementTree.Element) -> tuple[str, tuple[str, str]]:
    name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
    for kind, word in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            return name, (word, (found.get("message") or found.text or "").strip().split("\n")[0][:160])
    return name, ("passed", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("-k", dest="expression", default="", help="as pytest has it")
    parser.add_argument("-o", dest="output", type=Path, help="all outcomes as JSON")
    arguments = parser.parse_args()
    path = arguments.path.resolve()
    if path.is_dir():
        path = path / "nn" / "test_convolution.py"
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status.json"
        without = run(path, arguments.expression, None)
        with_engine = run(path, arguments.expression, status)
        engine = json.loads(status.read_text(encoding="utf-8"))

    print(f"{'':12}{'passed':>8}{'failed':>8}{'skipped':>8}")
    for title, results in (("without", without), ("with engine", with_engine)):
        counts = Counter(word for word, _ in results.values())
        print(f"{title:12}" + "".join(f"{counts[word]:8}" for word in ("passed", "failed", "skipped")))
    print(f"\nServed by the engine: {engine['calls']}\nFallbacks: {engine['fallbacks']}")
    print("\nSkipped with the engine, by reason:")
    for reason, count in Counter(reason for word, reason in with_engine.values() if word == "skipped").most_common():
        print(f"{count:6}  {reason}")
    both = sorted(name for name, (word, _) in with_engine.items() if word == "failed" and without.get(name, ("",))[0] == "failed")
    print(f"\nFailed without the engine too: {len(both)}")
    for name in both:
        print(f"        {name}: {without[name][1]}")
    differing = sorted(name for name in {*without, *with_engine} if without.get(name, ("absent",))[0] != with_engine.get(name, ("absent",))[0])
    print(f"\nAnother outcome with the engine: {len(differing)}")
    for name in differing:
        (before, _), (after, reason) = without.get(name, ("absent", "")), with_engine.get(name, ("absent", ""))
        print(f"        {name}: {before} -> {after} {reason}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"without": without, "with": with_engine, "status": engine}, indent=1), encoding="utf-8")
    return int(any(with_engine.get(name, ("absent",))[0] in ("failed", "absent") for name in differing))


if __name__ == "__main__":
    sys.exit(main())
