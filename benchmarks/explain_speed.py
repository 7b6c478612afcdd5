"""How quick `rocm-patch explain` is, and how slow a line can make it.

    python benchmarks/explain_speed.py [--profile]

Logs a second on one core over the cases of the tests (processor time, in one process); the time of logs of 10 MB of several kinds;
and for each expression of the tables the slowest of some lines made to be hostile to it. A share of a plain loop is shown beside
each figure, so that two machines, or a busy one and an idle one, can be compared.
"""

from __future__ import annotations

import cProfile
import gc
import itertools
import json
import os
import pstats
import random
import re
import sys
import time
from pathlib import Path

from rocm_patch import knowledge
from rocm_patch.explain import batch, explain
from rocm_patch.knowledge.matching import LINE
from rocm_patch.logs import text
from rocm_patch.logs.facts import Told

CASES = Path(__file__).parents[1] / "tests/explain/cases.jsonl"
LOGS = 3000
LARGE = 10 << 20
TABLES = knowledge.load()


def loop() -> float:
    """Seconds for a million turns of a plain loop: what this processor is worth just now."""
    begin, total = time.process_time(), 0
    for number in range(1_000_000):
        total += number * number
    return time.process_time() - begin


def questions(strangers: bool = False) -> list[bytes]:
    """As many lines of a batch as are asked. `strangers`: no two of them tell the same facts, so that nothing can be kept of them."""
    cases = itertools.islice(itertools.cycle(json.loads(line) for line in CASES.read_text().splitlines()), LOGS)
    own = [{"env.AMD_NUMBER": str(number)} if strangers else {} for number in range(LOGS)]
    return [
        json.dumps({"id": case["id"], "log": case["log"], "given": {**case["given"], **more}}).encode() for case, more in zip(cases, own, strict=True)
    ]


def throughput() -> None:
    """Logs a second, with the answers written out as the command does; the best of three, for others use the machine as well."""
    encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
    for name, strangers in (("logs whose facts were told before", False), ("logs of which each tells facts of its own", True)):
        best = float("inf")
        for _ in range(3):
            asked = questions(strangers)
            list(batch(asked[:420], TABLES))
            gc.collect()
            gc.freeze()
            begin = time.process_time()
            for answer in batch(asked, TABLES):
                encode(answer)
            best = min(best, time.process_time() - begin)
        print(f"{LOGS / best:8.0f} {name}, a second, {best / LOGS / loop():.4f} loops each")


def large() -> None:
    """Logs of 10 MB."""
    random.seed(1)
    words = [word for row in TABLES.signatures for word in row.sample.lower().split()]
    kinds = {
        "one driver message again and again": b"[ 12.3] amdgpu 0000:0a:00.0: amdgpu: ring gfx_0.0.0 timeout, signaled seq=1\n" * 140_000,
        "words of the samples, at random": "\n".join(" ".join(random.choices(words, k=12)) for _ in range(130_000)).encode(),
        "hexadecimal numbers": "\n".join(f"{random.getrandbits(128):032x}" for _ in range(320_000)).encode(),
        "bytes at random": os.urandom(LARGE),
        "one line": b"a" * LARGE,
        "empty lines": b"\n" * LARGE,
        "one traceback after another": b"".join(
            b'  File "/opt/app/module_%d.py", line %d, in call_%d\n    return self.layer_%d(inputs_%d, scale)\n' % ((number,) * 5)
            + (b"RuntimeError: miopenStatusUnknownError\n" if number % 40 == 0 else b"")
            for number in range(LARGE // 100)
        ),
        "UTF-16": ("RuntimeError: HIP error: invalid device function\r\n" * 100_000).encode("utf-16"),
    }
    for name, data in kinds.items():
        begin = time.process_time()
        explain(text.decode(data[:LARGE]), Told(), TABLES)
        print(f"{time.process_time() - begin:8.2f} s for 10 MB of {name}")


def hostile() -> None:
    """The slowest expressions, each with a line of 1 MB that is made of its own words."""
    worst = []
    for pattern in TABLES.finder.patterns:
        for part in pattern.parts:
            pieces = re.findall("[a-z ]{2,}", part.regex.pattern) or ["a"]
            fillers = ("", " ", "a" * 20, " " * 20, "1" * 15)
            for line in (filler.join((*pieces, "")) * (1_000_000 // max(len(filler.join(pieces)), 1) + 1) for filler in fillers):
                lines, _ = text.lines(line[:1_000_000].lower())
                begin = time.process_time()
                for one in lines:
                    part.regex.search(one)
                worst.append((time.process_time() - begin, pattern.row.id))
    for spent, name in sorted(worst, reverse=True)[:5]:
        print(f"{spent * 1000:8.1f} ms for a hostile line of 1 MB (in pieces of {LINE}): {name}")


def main() -> None:
    throughput()
    large()
    hostile()
    if "--profile" in sys.argv:
        profile = cProfile.Profile()
        profile.runcall(lambda: list(batch(questions()[:1000], TABLES)))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
