"""Random histories: apply, rollback, edits by others, upgrades, kills, recoveries, in any order.

Whatever happened, after a recovery and `rollback --all` the tree is what it was, but for what others did to it.
A hundred histories a commit, the same ones every time; ROCM_PATCH_EXHAUSTIVE=1 draws two thousand of up to thirty steps.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import hypothesis.strategies as st
import pytest
from changes_support import (
    CASES,
    EXHAUSTIVE,
    STATE,
    TABLES,
    TEST_KINDS,
    DieAt,
    Killed,
    describe,
    difference,
    do_apply,
    do_recover,
    do_rollback,
    prepare,
    regenerate,
    snapshot,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from rocm_patch.apply import rollback, status
from rocm_patch.changes import Locations
from rocm_patch.errors import RefusedError
from rocm_patch.model import Step

PATHS = (
    "etc/new.d/one.conf", "etc/modprobe.d/two.conf", "etc/profile.d/three.sh", "etc/four.cfg", "etc/five.conf", "etc/profile.d/zz-rocm-patch.sh",
    "etc/made.conf", "etc/hook.conf", "etc/profile.d/other.sh", "etc/theirs.conf", "etc/new.d/theirs.conf",
)  # fmt: skip
"""What others change: our files, files that we replace or remove, and files that we do not know."""
MORE_STEPS = {
    "five b": (Step("five", "system", {"variant": ("b",)}),),
    "drop": CASES["environment"][:1],
    "made otherwise": (Step("made", "system", {"word": ("splash",)}),),
}
ALL = {**CASES, **MORE_STEPS}
counts = {"histories": 0, "steps": 0, "applied": 0, "kills": 0, "edits": 0, "upgrades": 0, "refused": 0, "rolled back": 0}


class Histories(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
        self.scratch = tempfile.mkdtemp(prefix="rocm-patch-test-", dir=base)
        self.root = prepare(f"{self.scratch}/root")
        self.expected = snapshot(self.root)
        counts["histories"] += 1

    def guarded(self, action):
        counts["steps"] += 1
        try:
            return action()
        except RefusedError as error:
            counts["refused"] += 1
            assert error.what
        return None

    # ------------------------------------------------------------------ ours

    @rule(case=st.sampled_from(sorted(ALL)))
    def apply(self, case):
        receipts = self.guarded(lambda: do_apply(self.root, ALL[case]))
        counts["applied"] += bool(receipts and receipts[0].outcome == "applied")

    @rule(case=st.sampled_from(sorted(ALL)), point=st.integers(1, 130))
    def apply_killed(self, case, point):
        self.killed(lambda observe: do_apply(self.root, ALL[case], observe), point)

    @rule(everything=st.booleans())
    def rollback(self, everything):
        receipts = self.guarded(lambda: do_rollback(self.root, everything=everything))
        counts["rolled back"] += bool(receipts and receipts[0].outcome == "rolled back")

    @rule(number=st.integers(0, 5))
    def rollback_by_name(self, number):
        (scope,) = status(Locations(self.root))
        if number < len(scope.transactions):
            name = scope.transactions[number].transaction
            self.guarded(lambda: rollback(Locations(self.root), name, tables=TABLES, kinds=TEST_KINDS))

    @rule(point=st.integers(1, 130), everything=st.booleans())
    def rollback_killed(self, point, everything):
        self.killed(lambda observe: do_rollback(self.root, observe, everything), point)

    @rule()
    def recover(self):
        self.guarded(lambda: do_recover(self.root))

    @rule(point=st.integers(1, 40))
    def recover_killed(self, point):
        self.killed(lambda observe: do_recover(self.root, observe), point)

    def killed(self, action, point):
        try:
            self.guarded(lambda: action(DieAt(point)))
        except Killed:
            counts["kills"] += 1

    # ------------------------------------------------------------------ others

    @rule(path=st.sampled_from(PATHS), how=st.sampled_from(["append", "mode", "remove", "upgrade"]))
    def edit(self, path, how):
        place = f"{self.root}/{path}"
        there = os.path.lexists(place)
        if not os.path.isdir(os.path.dirname(place)) or (not there and how in ("mode", "remove")):
            return
        counts["edits"] += 1
        if how == "remove":
            os.unlink(place)
            self.expected.pop(path, None)
            return
        if how == "mode":
            os.chmod(place, 0o600 if os.stat(place).st_mode & 0o7777 != 0o600 else 0o640)
        elif how == "append":
            with open(place, "ab") as file:
                file.write(b"# mine\n")
        else:  # as a package manager does it: a new file by rename
            with open(f"{place}.dpkg-new", "wb") as file:
                file.write(b"upgraded %d\n" % counts["edits"])
            os.rename(f"{place}.dpkg-new", place)
        self.expected[path] = describe(place)
        folder = os.path.dirname(path)
        self.expected[folder] = describe(f"{self.root}/{folder}")

    @rule()
    def upgrade(self):
        """A new kernel: the system's own tool generates its files again, from whatever of ours is in force."""
        counts["upgrades"] += 1
        with open(f"{self.root}/boot/kernels", "ab") as file:
            file.write(b"kernel %d\n" % counts["upgrades"])
        regenerate(self.root)
        self.expected["boot/kernels"] = describe(f"{self.root}/boot/kernels")

    # ------------------------------------------------------------------ the end

    def teardown(self):
        try:
            self.judge()
        finally:
            shutil.rmtree(self.scratch)

    def judge(self):
        do_recover(self.root)
        do_rollback(self.root)
        now, expected = snapshot(self.root), dict(self.expected)
        if "etc/made.conf" in now or "etc/made.conf" in expected:
            # Somebody's own made.conf: what the tool makes of it is theirs.
            for path in ("boot/image", "boot/menu.cfg"):
                now.pop(path, None)
                expected.pop(path, None)
        else:
            expected["boot/menu.cfg"] = self.menu()
        (scope,) = status(Locations(self.root))
        if not scope.transactions:
            assert not os.path.lexists(f"{self.root}/{STATE}")
        rest = {path: row for path, row in now.items() if path != "var/lib" and not path.startswith("var/lib/")}
        # A folder of ours stays for a file that others keep in it, or kept in it when we went.
        for path in ("etc/new.d", "opt"):
            if path in rest and path not in expected and not os.listdir(f"{self.root}/{path}"):
                del rest[path]
            if path in expected and path not in rest and path == "etc/new.d":
                del expected[path]
        assert rest == expected, difference(expected, rest)

    def menu(self):
        kernels = f"{self.root}/boot/kernels"
        old = self.expected["boot/menu.cfg"]
        text = b"menu\n"
        if os.path.exists(kernels):
            with open(kernels, "rb") as file:
                text += file.read()
        return (*old[:4], text, old[5])


@pytest.mark.parametrize("part", range(20 if EXHAUSTIVE else 1))
def test_any_history_ends_where_it_began(part):
    examples = 100
    for name in counts:
        counts[name] = 0
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, database=None, derandomize=not EXHAUSTIVE, print_blob=True,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip
    print(f"histories: {counts}")
    assert counts["histories"] >= examples
    assert min(counts["kills"], counts["edits"], counts["applied"]) > examples // 4
    assert counts["rolled back"] > 0
