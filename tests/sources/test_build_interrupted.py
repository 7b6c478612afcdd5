"""A build that is killed, broken off or left by its machine, and resumed: the same result, and nobody left running."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project
from test_build import sessions

from rocm_patch.sources import build

pytestmark = pytest.mark.skipif(not Path("/usr/bin/ninja").exists() or not Path("/usr/bin/cc").exists(), reason="needs cc and ninja")


def ended(child: subprocess.Popen) -> str:
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, (out, err)
    assert err == b""
    return next(line.split()[1] for line in out.decode().splitlines() if line.startswith("result"))


def gone(folder: str) -> bool:
    """What a killed build had started has ended, or does so within a moment."""
    deadline = time.monotonic() + 10
    while sessions(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not sessions(folder)


def test_killed_at_points_and_resumed_it_is_the_same(tmp_path):
    killed_at_points(tmp_path, 4)


def killed_at_points(tmp_path, wanted):
    source, seed = project.plant(tmp_path / "source"), int(os.environ.get("ROCM_PATCH_TEST_SEED", random.randrange(1 << 30)))
    chance = random.Random(seed)
    began = time.monotonic()
    right = ended(project.start(source, tmp_path / "whole"))
    whole = time.monotonic() - began
    kills = rounds = 0
    while kills < wanted:
        cache = tmp_path / f"cache{rounds}"
        rounds += 1
        folder = project.planned(source, cache).work.folder
        while kills < wanted:
            child = project.start(source, cache)
            try:
                child.wait(chance.uniform(0.2, whole))
                break
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                kills += 1
            if chance.random() < 0.5:  # the next build ends what the kill left; every other time it has ended by itself
                assert gone(folder), f"seed {seed}"
        else:
            child = project.start(source, cache)
        assert ended(child) == right, f"seed {seed}"
        assert gone(folder)
        shutil.rmtree(cache)


def test_with_us_dies_what_we_started(tmp_path):
    """Without it ninja would go on for hours, beside the build that resumes."""
    source = project.plant(tmp_path / "source")
    (source / "configure").write_text("touch $2/here; sleep 1000\n")
    folder = project.planned(source, tmp_path).work.folder
    child = project.start(source, tmp_path)
    wait_for(Path(folder, "build/here"), child)
    assert sessions(folder)
    child.kill()
    child.communicate()
    # The shell is told to end at once; its sleep outlives it until the next build ends the session.
    with project.planned(source, tmp_path).work.locked():
        assert not sessions(folder)


def test_after_a_reboot_half_written_objects_are_built_again(tmp_path):
    source = project.plant(tmp_path / "source")
    right = build.run(project.planned(source, tmp_path / "whole")).digest
    plan = project.planned(source, tmp_path / "cache")
    assert build.run(plan).digest == right
    folder = Path(plan.work.folder)
    # As a power failure leaves it: the child is noted, of an earlier boot; objects have their length and no bytes; no stamp yet.
    for name in ("built", "staged", "proven"):
        (folder / "stamps" / f"{name}.json").unlink()
    for path in folder.glob("build/*.o"):
        path.write_bytes(b"\0" * path.stat().st_size)
    (folder / "build/libsmall.so.1.0").write_bytes(b"\0" * 100)
    (folder / "session").write_text('{"pid": 1, "boot": "another"}')
    assert build.run(plan).digest == right


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"inputs": 1}', b'\xff\xfe{"inputs": "x", "output": 3}'])
def test_a_damaged_stamp_is_no_stamp(tmp_path, damage):
    source = project.plant(tmp_path / "source")
    plan = project.planned(source, tmp_path)
    right = build.run(plan).digest
    Path(plan.work.folder, "stamps/built.json").write_bytes(damage)
    Path(plan.work.folder, "session").write_bytes(damage)
    again = build.run(plan)
    assert again.digest == right
    assert "built" not in again.reused


def wait_for(path: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
