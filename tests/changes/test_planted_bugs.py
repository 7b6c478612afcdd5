"""The harness is tested with bugs: each of the thirteen must be found, or the sweeps prove nothing."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from changes_support import (
    CASES,
    TABLES,
    TEST_KINDS,
    DieAt,
    Killed,
    Truth,
    clone,
    count_operations,
    do_apply,
    do_recover,
    do_rollback,
    plan_for,
    prepare,
    snapshot,
)
from test_crash import kill_sweep, start
from test_power_loss import complaints

import rocm_patch.root
from rocm_patch.apply import apply
from rocm_patch.changes import engine, transaction
from rocm_patch.changes.journal import Journal
from rocm_patch.changes.places import Locations
from rocm_patch.changes.transaction import Transaction
from rocm_patch.errors import RocmPatchError
from rocm_patch.root import ABSENT, Tree, join, parent_of

FIVE = CASES["five"]


# ------------------------------------------------------------------ the four searches


def by_kill(scratch):
    return [text for verb in ("apply", "rollback") for text in kill_sweep(FIVE, verb, f"{scratch}/{verb}")[1]]


def by_kill_while_generating(scratch):
    """The same where a tool of the system makes files from ours."""
    return [text for verb in ("apply", "rollback") for text in kill_sweep(CASES["generated"], verb, f"{scratch}/{verb}")[1]]


def by_kill_of_what_hangs_together(scratch):
    """The same where one file names a folder: neither order of death may leave the name alone."""
    return [text for verb in ("apply", "rollback") for text in kill_sweep(CASES["grown"], verb, f"{scratch}/{verb}")[1]]


def by_power_loss(scratch):
    return complaints(FIVE, "apply", f"{scratch}/apply", limit=3)[1] or complaints(FIVE, "rollback", f"{scratch}/rollback", limit=3)[1]


def by_exactness(scratch):
    """Apply, roll back, compare."""
    root = prepare(f"{scratch}/exact")
    before = snapshot(root)
    do_apply(root, FIVE)
    do_rollback(root)
    return [] if snapshot(root) == before else ["the tree is not what it was"]


def by_failed_reads(scratch):
    """A read fails while the transaction looks at what is there."""
    wrong, real = [], os.read
    truth, source = Truth.of(FIVE, f"{scratch}/reads"), start(FIVE, "apply", f"{scratch}/reads")
    for point in range(1, 40):
        seen = [0]

        def read(descriptor, size, seen=seen, point=point):
            seen[0] += 1
            if seen[0] == point:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor, size)

        root = clone(source, f"{scratch}/reads/run")
        plan = plan_for(FIVE, Locations(root))
        os.read = read
        try:
            apply(dataclasses.replace(plan, facts=dict(plan.facts)), Locations(root), tables=TABLES, kinds=TEST_KINDS, say=lambda _: None)
        except (RocmPatchError, OSError):
            pass
        finally:
            os.read = real
        try:
            do_recover(root)
            verdict = truth.judge(root, back=True)
        except (RocmPatchError, OSError) as error:
            verdict = repr(error)
        wrong += [verdict] if verdict else []
    return wrong


def by_foreign_edit(scratch):
    """Somebody edits a file of ours between apply and rollback, and while a transaction is open."""
    wrong = []
    root = prepare(f"{scratch}/foreign")
    do_apply(root, FIVE)
    mine, path = b"edited by its owner\n", Path(f"{root}/etc/modprobe.d/two.conf")
    path.write_bytes(mine)
    do_rollback(root)
    if not path.exists() or path.read_bytes() != mine:
        wrong.append("a foreign edit was overwritten")
    return wrong


def by_killed_recovery(scratch):
    """Recovery dies at each of its primitives, and the next one finishes."""
    truth, source, wrong = Truth.of(FIVE, f"{scratch}/twice"), start(FIVE, "apply", f"{scratch}/twice"), []
    total = count_operations(lambda observe: do_apply(clone(source, f"{scratch}/twice/run"), FIVE, observe))
    for first in (total * 4 // 8, total * 5 // 8, total * 6 // 8):
        broken = clone(source, f"{scratch}/twice/broken")
        with pytest.raises(Killed):
            do_apply(broken, FIVE, DieAt(first))
        for second in range(1, 60):
            root = clone(broken, f"{scratch}/twice/run")
            try:
                do_recover(root, DieAt(second))
            except Killed:
                do_recover(root)
                verdict = truth.judge(root)
                wrong += [verdict] if verdict else []
            else:
                break
    return wrong


SEARCHES = (
    by_exactness,
    by_foreign_edit,
    by_killed_recovery,
    by_failed_reads,
    by_power_loss,
    by_kill,
    by_kill_while_generating,
    by_kill_of_what_hangs_together,
)


# ------------------------------------------------------------------ the bugs


def written_in_place(monkeypatch):
    def put(self, path, state):
        now = self.state(path)
        if now == state:
            return
        if now.kind != "absent":
            (self.remove_folder if now.kind == "folder" else self.remove)(path)
        if state.kind == "folder":
            self.make_folder(path, state.mode)
        elif state.kind == "file":
            self.create(path, state.data, state.mode)
            self.dress(path, state)
            self.sync(path)
        self.sync_folder(parent_of(path))

    monkeypatch.setattr(Tree, "put", put)


def _run_with(monkeypatch, body):
    """`Transaction.run` with another order of steps."""

    def run(self, contents, undo, finish):
        try:
            self.journal.create()
            return body(self, contents, undo, finish)
        except BaseException as error:
            self._abort(error)
            raise

    monkeypatch.setattr(Transaction, "run", run)


def journal_after_the_change(monkeypatch):
    def body(self, contents, undo, finish):
        self.journal.store(self.record, contents, undo)
        for entry in self.record.entries:
            self.move(entry)
        self.journal.write_plan(self.record)
        done = finish(self.record)
        self.journal.write_receipt(done)
        self.journal.remove_plan()
        return done

    _run_with(monkeypatch, body)


def no_sync_of_files(monkeypatch):
    monkeypatch.setattr(Tree, "sync", lambda self, path: None)


def no_sync_of_folders(monkeypatch):
    monkeypatch.setattr(Tree, "sync_folder", lambda self, path: None)


def commit_before_the_last_file(monkeypatch):
    def body(self, contents, undo, finish):
        self.journal.store(self.record, contents, undo)
        self.journal.write_plan(self.record)
        for entry in self.record.entries[:-1]:
            self.move(entry)
        done = finish(self.record)
        self.journal.write_receipt(done)
        self.journal.remove_plan()
        self.move(self.record.entries[-1])
        return done

    _run_with(monkeypatch, body)


def copies_removed_too_early(monkeypatch):
    real = Journal.write_receipt

    def write_receipt(self, record):
        for name in self.tree.names(join(self.folder, record.transaction)):
            self.tree.remove(f"{self.folder}/{record.transaction}/{name}")
        real(self, record)

    monkeypatch.setattr(Journal, "write_receipt", write_receipt)


def rollback_in_the_wrong_order(monkeypatch):
    real = transaction.compose

    def compose(journal, selected):
        undoing = real(journal, selected)
        return dataclasses.replace(undoing, entries=tuple(reversed(undoing.entries)))

    monkeypatch.setattr("rocm_patch.changes.engine.compose", compose)


def temporary_that_is_read(monkeypatch):
    real = rocm_patch.root.temporary_name
    monkeypatch.setattr(rocm_patch.root, "temporary_name", lambda: real()[1:] + ".conf")


def mode_and_owner_lost(monkeypatch):
    monkeypatch.setattr(Tree, "dress", lambda self, path, state: None)


def failed_read_taken_as_empty(monkeypatch):
    real = Tree.state

    def state(self, path, limit=64 << 20):
        try:
            return real(self, path, limit)
        except OSError:
            return ABSENT

    monkeypatch.setattr(Tree, "state", state)


def foreign_edit_overwritten(monkeypatch):
    real_at, real_now = Transaction.is_at, transaction._now

    def is_at(self, path, shape):
        return real_at(self, path, shape) or (shape.kind == "file" and self.tree.state_kind(self.ground.at(path)) == "file")

    def now(journal, path, newest):
        found = real_now(journal, path, newest)
        return newest[1].after if found is not None and found.kind == newest[1].after.kind == "file" else found

    monkeypatch.setattr(Transaction, "is_at", is_at)
    monkeypatch.setattr(transaction, "_now", now)


def recovery_not_repeatable(monkeypatch):
    def close(journal, opened, again=None):
        journal.withdraw_receipt(opened)
        journal.remove_plan()
        return Transaction(journal, opened).put_back()

    monkeypatch.setattr(transaction, "close", close)


def generated_before_it_is_journalled(monkeypatch):
    real = engine._put_generated

    def put_generated(journal, draft, generated, made, contents):
        for change in generated:
            journal.tree.put(journal.ground.at(change.path), change.after)
        return real(journal, draft, generated, made, contents)

    monkeypatch.setattr(engine, "_put_generated", put_generated)


BUGS = (
    written_in_place, journal_after_the_change, no_sync_of_files, no_sync_of_folders, commit_before_the_last_file, copies_removed_too_early,
    rollback_in_the_wrong_order, temporary_that_is_read, mode_and_owner_lost, failed_read_taken_as_empty, foreign_edit_overwritten,
    recovery_not_repeatable, generated_before_it_is_journalled,
)  # fmt: skip


FIRST = {
    written_in_place: by_power_loss, no_sync_of_files: by_power_loss, no_sync_of_folders: by_power_loss,
    rollback_in_the_wrong_order: by_kill_of_what_hangs_together, generated_before_it_is_journalled: by_kill_while_generating,
}  # fmt: skip
"""Where to look first; all searches are made if it is not found there."""


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_planted_bug_is_found(bug, scratch, monkeypatch):
    bug(monkeypatch)
    found = []
    for search in sorted(SEARCHES, key=lambda search: search is not FIRST.get(bug)):
        try:
            found = search(f"{scratch}/{search.__name__}")
        except Exception as error:  # a bug that ends in a crash is found as well
            found = [f"{search.__name__} ended with {error!r}"]
        if found:
            print(f"{bug.__name__}: found by {search.__name__}: {found[0][:150]}")
            break
    assert found


def test_nothing_is_found_where_nothing_is_wrong(scratch):
    for search in (by_exactness, by_foreign_edit, by_killed_recovery, by_failed_reads):
        assert search(f"{scratch}/{search.__name__}") == []
