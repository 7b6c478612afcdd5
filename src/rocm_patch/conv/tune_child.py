"""The child of `tune`: verifies and times the candidates of one problem after the other, and says what it begins before it does.

One line of JSON each way. It answers "stack" once; then for each request "candidates" (of which the parent picks), for each of those "begins" (which
the parent acknowledges when that is on disk) and a verdict, and "done" with the times. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from . import choose, estimate, stack, verify
from .algorithms import BY_NAME, Algorithm, Run, Variant
from .bench import Timer
from .problem import Problem, parse

BEHIND = 2.0
"""A candidate that is so much slower than the best is not measured further."""
NEAR = 1.2
"""As much slower is measured to the end, to see whether it is."""
HOPELESS = 30.0
"""What is estimated to take so much longer than the best takes is not tried."""
ROUNDS = 5
_PR_SET_PDEATHSIG = 1


@dataclass
class Candidate:
    """One that has been verified."""

    algorithm: Algorithm
    variant: Variant
    run: Run
    seconds: float
    flushes: int = 1
    """Writes before each measured call: they keep the device busy while the host enqueues the call, which a network does as well."""
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples) if self.samples else self.seconds

    def told(self) -> dict[str, Any]:
        return {"algorithm": self.algorithm.name, "variant": self.variant, "verdict": "ok", "microseconds": self.median * 1e6}


class Session:
    """One conversation with the parent."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self.requests, self.answers = requests, answers
        self.timers: dict[torch.device, Timer] = {}

    def say(self, document: dict[str, Any]) -> None:
        print(json.dumps(document), file=self.answers, flush=True)

    def hear(self) -> dict[str, Any]:
        line = self.requests.readline()
        if not line:
            raise SystemExit(0)
        found: dict[str, Any] = json.loads(line)
        return found

    def serve(self) -> None:
        request = self.hear()
        device = torch.device(request["device"])
        self.say({"stack": stack.fingerprint(device), "target": stack.target(device)})
        while True:
            request = self.hear()
            self.problem(parse(request["problem"], device), choose.Settings(**request["settings"]), request["most"], request["budget_ms"])

    def problem(self, problem: Problem, settings: choose.Settings, most: int, budget_ms: float) -> None:
        found = choose.candidates(problem, settings, most)
        estimates = [estimate.microseconds(algorithm.name, problem, variant) for algorithm, variant in found]
        self.say({"candidates": [[algorithm.name, variant, expected] for (algorithm, variant), expected in zip(found, estimates, strict=True)]})
        picked = [(BY_NAME[name], tuple(variant), expected) for name, variant, expected in self.hear()["measure"]]
        good: list[Candidate] = []
        if picked:
            timer = self.timers.get(problem.device) or self.timers.setdefault(problem.device, Timer(str(problem.device)))
            case = verify.case(problem, int.from_bytes(os.urandom(4), "little"))
            for algorithm, variant, expected in picked:
                best = min((each.seconds for each in good), default=math.inf)
                if good and (algorithm.name == "cpu" or expected / 1e6 > HOPELESS * best):
                    why = "not tried: others are right, and it is expected to be far slower"
                    self.say({"algorithm": algorithm.name, "variant": variant, "verdict": "failed", "error": why})
                    continue
                self.say({"begins": [algorithm.name, variant]})
                self.hear()
                self.candidate(case, algorithm, variant, settings, timer, good)
                if verify.canary(case.operands) != case.canary:  # it wrote into them: the others shall not suffer for it
                    case = verify.case(problem, int.from_bytes(os.urandom(4), "little"))
            self.race(case, good, timer, budget_ms)
            del case
            gc.collect()
            if timer.on_gpu:
                torch.cuda.empty_cache()
        self.say({"done": [each.told() for each in good]})

    def candidate(
        self, case: verify.Case, algorithm: Algorithm, variant: Variant, settings: choose.Settings, timer: Timer, good: list[Candidate]
    ) -> None:
        """Verify one, twice (the second time on memory that the first has used), and time it roughly."""
        began = time.perf_counter()
        verdict, why = "ok", ""
        try:
            run = algorithm.prepare(case.problem, variant, settings.workspace)
            with verify.poisoned():
                why = verify.check(case, run(*case.operands), algorithm.name, variant)
            why = why or verify.check(case, run(*case.operands), algorithm.name, variant)
            verdict = "wrong" if why else "ok"
            timer.synchronise()
        except Exception as error:
            verdict, why = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            if timer.on_gpu:
                self.survives(algorithm, variant, why)
                torch.cuda.empty_cache()
        answer: dict[str, Any] = {
            "algorithm": algorithm.name,
            "variant": variant,
            "verdict": verdict,
            "error": why,
            "took_s": time.perf_counter() - began,
        }
        if verdict == "ok":
            host, _ = min(timer.once(lambda: run(*case.operands)) for _ in range(2))
            candidate = Candidate(algorithm, variant, run, 0.0, max(1, timer.flushes(1.3 * host + 2e-5)))
            candidate.seconds = min(timer.samples(lambda: run(*case.operands), 2, candidate.flushes))
            good.append(candidate)
            answer["microseconds"] = candidate.seconds * 1e6
        self.say(answer)

    def survives(self, algorithm: Algorithm, variant: Variant, why: str) -> None:
        """After some errors a GPU's context is lost for the whole process: this one ends, and the parent starts another."""
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            self.say({"algorithm": algorithm.name, "variant": variant, "verdict": "crashed", "error": why})
            os._exit(0)

    def race(self, case: verify.Case, good: list[Candidate], timer: Timer, budget_ms: float) -> None:
        """Time those that are near the best in turns, and verify the winner once more: a race shows under load or never."""
        with torch.no_grad():
            for turn in range(ROUNDS):
                best = min((each.median for each in good), default=0.0)
                near = [each for each in good if each.median <= (BEHIND if turn == 0 else NEAR) * best]
                if len(near) < 2 and turn:
                    break
                for each in near if turn % 2 == 0 else reversed(near):
                    self.say({"begins": [each.algorithm.name, each.variant], "again": True})
                    count = max(1, min(20, math.ceil(budget_ms / 1e3 / ROUNDS / max(each.median, 1e-6))))
                    each.samples += timer.samples(lambda each=each: each.run(*case.operands), count, each.flushes)  # type: ignore[misc]
        while good:
            winner = min(good, key=lambda each: each.median)
            self.say({"begins": [winner.algorithm.name, winner.variant], "again": True})
            why = verify.check(case, winner.run(*case.operands), winner.algorithm.name, winner.variant)
            if not why:
                return
            good.remove(winner)
            self.say({"algorithm": winner.algorithm.name, "variant": winner.variant, "verdict": "wrong", "error": f"not every time: {why}"})


def main() -> None:
    """Standard output is for the answers alone: libraries print there too."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        return
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        Session(sys.stdin, private).serve()


if __name__ == "__main__":
    main()
