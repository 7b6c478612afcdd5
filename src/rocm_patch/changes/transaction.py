"""One transaction: copies durable, plan durable, replace, activate, verify, receipt, and the commit by removing the plan.

Recovery puts the before-states back and may be repeated from any point. A path that is neither as it was nor as we would
have left it belongs to somebody else: it is reported and left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rocm_patch.changes import grown
from rocm_patch.changes.journal import Journal
from rocm_patch.changes.record import GONE, Entry, Record, Shape, digest, fits, shape_of, without_line
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Receipt
from rocm_patch.root import ABSENT, CONTENT_LIMIT, State, parent_of

STRANGERS_NAMED: Final = 20
"""How many foreign files of one folder a receipt names."""


class Transaction:
    """A record and the journal that keeps it; the journal's lock is held by the caller."""

    def __init__(self, journal: Journal, record: Record, ready: Callable[[str], None] = lambda _: None) -> None:
        """`ready` is asked before a path is changed, with all before it in place and durable."""
        self.journal = journal
        self.record = record
        self.ready = ready
        self.tree = journal.tree
        self.ground = journal.ground

    # ------------------------------------------------------------------ forward

    def run(self, contents: Mapping[str, bytes], undo: bytes, finish: Callable[[Record], Record]) -> Record:
        """Do it all, or leave everything as it was.

        `finish` activates, verifies, and returns the record with its receipt.

        Raises:
            RefusedError: a path changed under us.
            RocmPatchError, OSError: what went wrong; the before-states are back unless the text says otherwise.
        """
        try:
            self.journal.create()
            self.journal.store(self.record, contents, undo)
            self.journal.write_plan(self.record)
            for entry in self.record.entries:
                self.ready(entry.path)
                self.move(entry)
            done = finish(self.record)
            self.journal.write_receipt(done)
            self.journal.remove_plan()
        except BaseException as error:
            self._abort(error)
            raise
        return done

    def move(self, entry: Entry) -> None:
        """Bring one path from before to after.

        Raises:
            RefusedError: it is not as it was when the plan was written.
        """
        if not self.is_at(entry.path, entry.before):
            raise RefusedError(f"{entry.path} was changed by somebody else in this moment; nothing was overwritten")
        at = self.ground.at(entry.path)
        if entry.after.kind == "grown":
            grown.plant(self.tree, at, self.record.transaction, entry.after.mode)
        elif entry.before.kind == "grown":
            self._take_away(entry)
        else:
            self._put(entry.path, entry.after)

    def _take_away(self, entry: Entry) -> None:
        at, folder = self.ground.at(entry.path), entry.path
        grown.set_aside(self.tree, at, self.record.transaction)
        # Looked at once more where nobody reaches it any longer: what was added since the first look is not lost.
        known = self.journal.content(self.record, dataclasses.replace(entry.before, kind="file")).data
        tomb = grown.tomb_of(at, self.record.transaction)
        # Folders of ours inside this one were set aside before it, and lie there still.
        inside = [entry.path for entry in self.record.entries if entry.path.startswith(f"{folder}/") and entry.before.kind == "grown"]
        aside = [self.ground.on_machine(grown.tomb_of(self.ground.at(path), self.record.transaction)) for path in inside]
        if grown.strangers(self.tree, tomb, known, [path[len(folder) + 1 :] for path in aside]):
            raise RefusedError(f"{entry.path} was changed by somebody else in this moment; nothing was removed")

    def _put(self, path: str, shape: Shape) -> None:
        at = self.ground.at(path)
        if shape.kind == "absent" and self.tree.state_kind(at) == "folder":
            try:
                self.tree.remove_folder(at)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return  # somebody put something there: it is their folder now
                raise
            self.tree.sync_folder(parent_of(at))
        else:
            self.tree.put(at, self.journal.content(self.record, shape))

    # ------------------------------------------------------------------ back

    def put_back(self) -> list[str]:
        """Bring every path to its before-state; returns those that are somebody else's now."""
        left = list[str]()
        for entry in self.record.entries:
            at = self.ground.at(entry.path)
            if entry.after.kind == "grown":
                grown.clear_unborn(self.tree, at, self.record.transaction)
            # The anchor itself has no name to ask about: a change that made /opt could not be taken back after a kill.
            if not parent_of(at) or self.tree.state_kind(parent_of(at)) == "folder":
                self.tree.sweep_temporaries(parent_of(at))
        for entry in reversed(self.record.entries):
            if "grown" in (entry.before.kind, entry.after.kind):
                self._put_back_grown(entry, left)
            elif self.is_at(entry.path, entry.before):
                continue
            elif self.is_at(entry.path, entry.after):
                self._put(entry.path, entry.before)
            elif (mended := mend(self.tree.state(at, CONTENT_LIMIT), (entry,))) is not None:
                self.tree.put(at, mended)
            else:
                left.append(entry.path)
        return left

    def _put_back_grown(self, entry: Entry, left: list[str]) -> None:
        at, name = self.ground.at(entry.path), self.record.transaction
        if entry.after.kind == "grown":
            if grown.marker_of(self.tree, at) == name:
                grown.set_aside(self.tree, at, name)
            elif self.tree.state_kind(at) != "absent":
                left.append(entry.path)
            grown.clear_tomb(self.tree, at, name)
        elif self.tree.state_kind(grown.tomb_of(at, name)) == "folder":
            if self.tree.state_kind(at) == "absent":
                grown.bring_back(self.tree, at, name)
            else:
                left.append(entry.path)

    def is_at(self, path: str, shape: Shape) -> bool:
        """Whether a path is as a shape says."""
        at = self.ground.at(path)
        if shape.kind == "grown":
            return grown.marker_of(self.tree, at) == shape.target
        return fits(self.tree.state(at, CONTENT_LIMIT), shape)

    def _abort(self, error: BaseException) -> None:
        """Take an unfinished run back. The first error stays the one that is told."""
        committed = False
        try:
            if not self.journal.exists:
                return
            opened = self.journal.open_record()
            if opened is not None and opened.transaction == self.record.transaction:
                close(self.journal, opened)
            else:
                committed = any(record.transaction == self.record.transaction for record in self.journal.records())
            if not committed:
                self.journal.sweep()
        except OSError as second:
            raise RocmPatchError(
                f"{words_of(error)}; and taking it back failed as well: {words_of(second)}", "run 'rocm-patch recover' when the disk works again"
            ) from error
        if committed and isinstance(error, OSError):
            raise RocmPatchError(f"it was done, but the disk did not confirm it: {words_of(error)}", "run 'rocm-patch status'") from error


def mend(now: State, entries: Sequence[Entry]) -> State | None:
    """A file of others less our lines in it; None where it is no such file, or our lines are not there as we wrote them."""
    if now.kind != "file" or not all(entry.line for entry in entries):
        return None
    data = now.data
    for entry in entries:
        less = without_line(data, entry.line)
        if less is None:
            return None
        data = less
    return ABSENT if not data and entries[-1].before.kind == "absent" else dataclasses.replace(now, data=data)


Again = Callable[[Record, Sequence[str]], Sequence[tuple[str, State]]]
"""Asks the kinds of a transaction that was taken back what has to be generated once more; gets the generated files that others changed."""
Hold = Callable[[Record], contextlib.AbstractContextManager[object]]
"""Takes what others expect to be held while a transaction is taken back."""


def close(journal: Journal, opened: Record, again: Again | None = None) -> list[str]:
    """Recover: put the before-states of an open transaction back and remove its plan. Returns the paths that were left."""
    left = Transaction(journal, opened).put_back()
    if again is not None and opened.verb == "apply":
        # Between the kill and now somebody may have generated files from ours: an upgrade after the power came back. It may be
        # done twice, so the plan goes only after it.
        stale = [entry.path for entry in opened.entries if entry.generated and entry.path in left]
        for path, state in again(opened, stale):
            journal.tree.put(journal.ground.at(path), state)
            left = [item for item in left if item != path]
    if left and opened.verb == "apply":
        # The copies of what was there are still wanted: keep the record, for those paths only.
        entries = tuple(entry for entry in opened.entries if entry.path in left)
        receipt = Receipt(opened.transaction, "recovered", (), tuple(left), "", (), "")
        journal.write_receipt(dataclasses.replace(opened, entries=entries, receipt=receipt))
    else:
        journal.withdraw_receipt(opened)
    journal.remove_plan()
    return left


def recover(journal: Journal, again: Again | None = None, hold: Hold = contextlib.nullcontext) -> Receipt | None:
    """Finish what a kill or a power cut left. None: there was nothing; no writing call is made then."""
    journal.bury()
    if not journal.exists:
        return None
    opened = journal.open_record()
    left = list[str]()
    if opened is not None:
        with hold(opened):
            left = close(journal, opened, again)
    if journal.has_garbage():
        journal.sweep()
    if opened is None:
        return None
    changed = tuple(entry.path for entry in opened.entries if entry.path not in left)
    return Receipt(opened.transaction, "recovered", changed, tuple(left), "", (), "")


# ------------------------------------------------------------------ taking back


@dataclasses.dataclass(frozen=True)
class Undoing:
    """What a rollback of some transactions comes to."""

    entries: tuple[Entry, ...]
    contents: Mapping[str, bytes]
    left: tuple[str, ...]
    undoes: tuple[str, ...]
    stale: tuple[str, ...]
    """Generated files that somebody generated again: no foreign edits, but they still hold our change."""


def compose(journal: Journal, selected: Sequence[Record]) -> Undoing:
    """Compare each path with what these transactions (newest first) did to it, and find where it shall go.

    Nothing is written.
    """
    entries, contents, left, stale = list[Entry](), dict[str, bytes](), list[str](), list[str]()
    spoiled = set[str]()
    paths = dict.fromkeys(entry.path for record in selected for entry in reversed(record.entries))
    for path in paths:
        steps = [(record, entry) for record in selected for entry in record.entries if entry.path == path]
        now, goal, source = _now(journal, path, steps[0]), None, None
        current = now
        matched = 0
        for record, entry in steps:
            if current is None or not (_same(current, entry.after) or _same(current, entry.before)):
                current = None
                break
            matched += 1
            if _same(current, entry.after) and not _same(entry.after, entry.before):
                current, goal, source = entry.before, entry.before, record
        if current is None and all(entry.generated for _, entry in steps):
            stale.append(path)
            continue
        whole = journal.tree.state(journal.ground.at(path), CONTENT_LIMIT) if current is None else ABSENT
        mended = mend(whole, [entry for _, entry in steps])
        if mended is not None and now is not None:
            contents[now.sha256] = whole.data
            contents[digest(mended.data)] = mended.data
            entries.append(Entry(path, now, shape_of(mended)))
            continue
        foreign = [path] if current is None else []
        if not foreign and now is not None and now.kind == "grown":
            known = journal.content(steps[0][0], dataclasses.replace(now, kind="file")).data
            contents[now.sha256] = known
            # What this rollback takes out of the folder before it, newest first, is no stranger in it.
            inside = [entry.path[len(path) + 1 :] for entry in entries if entry.path.startswith(f"{path}/") and entry.after.kind == "absent"]
            names = grown.strangers(journal.tree, journal.ground.at(path), known, inside)
            foreign = [path, *(f"{path}/{name}" for name in names[:STRANGERS_NAMED])] if names else []
        if foreign:
            left += foreign
            spoiled |= {record.transaction for record, _ in steps[matched if current is None else 0 :]}
        # Somebody changed it between two of ours: the newer ones go, and theirs stands there again. It used to stay as the newest left it.
        if (not foreign or (current is None and matched)) and goal is not None and source is not None and now is not None:
            if now.kind == "file":
                contents[now.sha256] = journal.tree.state(journal.ground.at(path), CONTENT_LIMIT).data
            if goal.kind == "file":
                contents[goal.sha256] = journal.content(source, goal).data
            entries.append(Entry(path, now, goal, all(entry.generated for _, entry in steps)))
    undoes = tuple(record.transaction for record in selected if record.transaction not in spoiled)
    return Undoing(tuple(entries), contents, tuple(left), undoes, tuple(stale))


def _now(journal: Journal, path: str, newest: tuple[Record, Entry]) -> Shape | None:
    """What is at a path, in the words of the record where they fit; None where it is nothing that we would handle."""
    record, entry = newest
    if Transaction(journal, record).is_at(path, entry.after):
        if entry.after.kind != "file":
            return entry.after
    state = journal.tree.state(journal.ground.at(path), CONTENT_LIMIT)
    if fits(state, entry.after):
        # The kernel's own labels count as there, so that a recovery of the rollback brings back exactly this.
        return dataclasses.replace(shape_of(state), attributes=entry.after.attributes)
    try:
        return shape_of(state)
    except ValueError:
        return None


def _same(one: Shape, other: Shape) -> bool:
    if one.kind == other.kind == "absent":
        return True
    return one == other


def words_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, RocmPatchError):
        return error.what
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return type(error).__name__


__all__ = ["GONE", "Transaction", "Undoing", "close", "compose", "recover", "words_of"]
