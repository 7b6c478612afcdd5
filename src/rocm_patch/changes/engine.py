"""One scope at a time: from steps to a transaction, and back. What `apply` does for the user and, under sudo, for root."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rocm_patch.changes import environment, grown, system_tools, undo, versions
from rocm_patch.changes.journal import UNDO, Journal
from rocm_patch.changes.kind import Change, Kind, Look, Needs, Tables, Unfinished, Unseen, Work
from rocm_patch.changes.places import Ground
from rocm_patch.changes.record import GONE, RECORD_SCHEMA, Entry, Record, Shape, digest, shape_of
from rocm_patch.changes.transaction import Transaction, compose, recover, words_of
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.model import Receipt, Step
from rocm_patch.root import CONTENT_LIMIT, State

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """The steps of one kind and what they come to."""

    kind: Kind
    steps: tuple[Step, ...]
    changes: tuple[Change, ...]


def new_transaction() -> str:
    """An id that sorts by time."""
    now = time.time_ns()
    second, fraction = divmod(now, 1_000_000_000)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(second))}-{fraction // 1000:06d}{secrets.token_hex(1)}"


# ------------------------------------------------------------------ from steps to changes


def kind_of(step: Step, tables: Tables, kinds: Sequence[Kind]) -> Kind:
    """Which kind a step is of, by the remedies table.

    Raises:
        RefusedError: no such remedy, or none that changes anything, or not in this scope.
    """
    row = tables.remedies.get(step.remedy)
    if row is None:
        raise RefusedError(f"{step.remedy!r} is no remedy that our tables know")
    kind = next((kind for kind in kinds if kind.name == row.kind), None)
    if kind is None:
        raise RefusedError(f"remedy {step.remedy} is of the kind {row.kind!r}, which changes nothing; follow its text instead")
    if step.scope not in kind.scopes:
        raise RefusedError(f"remedy {step.remedy} cannot be applied in {step.scope} scope")
    return kind


def validate(steps: Sequence[Step], tables: Tables, kinds: Sequence[Kind]) -> None:
    """Check every step against the tables.

    Raises:
        RefusedError, FormatError: the first that is not allowed.
    """
    for step in steps:
        kind = kind_of(step, tables, kinds)
        for key in step.parameters:
            if key not in tables.remedies[step.remedy].parameters:
                raise RefusedError(f"remedy {step.remedy} has no parameter {key!r}")
        kind.validate(step, tables)


def render(steps: Sequence[Step], look: Look, kinds: Sequence[Kind]) -> tuple[Part, ...]:
    """Paths and contents of valid steps of one scope, in the order of applying. Nothing is written."""
    validate(steps, look.tables, kinds)
    parts = []
    for kind in kinds:
        mine = tuple(step for step in steps if kind_of(step, look.tables, kinds) is kind)
        if mine:
            try:
                parts.append(Part(kind, mine, kind.render(mine, look)))
            except RefusedError as error:
                raise RefusedError(error.what, system_tools.hint_for(look.ground, error.hint)) from error
    paths = [change.path for part in parts for change in part.changes]
    if len(set(paths)) != len(paths):
        raise RefusedError("two steps of the plan want the same path")
    return tuple(parts)


def peek(ground: Ground, tables: Tables) -> Look:
    """Look without the lock, as any user: for previews. A closed journal is no obstacle.

    Raises:
        RefusedError: an earlier run did not come to its end.
    """
    journal = Journal(ground)
    try:
        opened, active = journal.open_record(), journal.active()
    except (PermissionError, RefusedError):
        return Look(ground, journal.tree, tables, (), journal_read=False)
    if opened is not None:
        raise RefusedError(f"transaction {opened.transaction} did not come to its end", "run 'rocm-patch recover' first")
    return Look(ground, journal.tree, tables, tuple(active))


def preview_scope(steps: Sequence[Step], ground: Ground, tables: Tables, kinds: Sequence[Kind]) -> list[tuple[str, State, State]]:
    """Every path that the steps manage in one scope, as it is and as it would be."""
    look = peek(ground, tables)
    return [(change.path, look.now(change.path), change.after) for part in render(steps, look, kinds) for change in part.changes]


@dataclass(frozen=True)
class Outlook:
    """What steps come to, from one look: what a plan pins is what was shown."""

    facts: Mapping[str, str]
    """For `Plan.facts`: the digest of what is now at each path."""
    changes: tuple[tuple[str, State, State], ...]
    """Each path, as it is and as it would be."""
    also: tuple[str, ...]
    """What is written besides, in words: what the system's own tools make, and what only root may read. Nothing where all is as planned."""


def outlook_scope(steps: Sequence[Step], ground: Ground, tables: Tables, kinds: Sequence[Kind]) -> Outlook:
    """What the steps come to in one scope."""
    look = peek(ground, tables)
    changes, also = list[tuple[str, State, State]](), list[str]()
    for part in render(steps, look, kinds):
        mine = [(change.path, look.now(change.path), change.after) for change in part.changes]
        busy = any(change.grown or now != after for change, (_, now, after) in zip(part.changes, mine, strict=True))
        if busy and part.kind.also is not None:
            also += part.kind.also(part.steps, look)
        changes += mine
    return Outlook({ground.label(path): now.digest() for path, now, _ in changes}, tuple(changes), tuple(also))


# ------------------------------------------------------------------ apply


def apply_scope(
    steps: Sequence[Step],
    facts: Mapping[str, str],
    ground: Ground,
    *,
    tables: Tables,
    kinds: Sequence[Kind],
    transaction: str,
    say: Say,
) -> Receipt:
    """Apply the steps of one scope as one transaction; whatever an earlier run left open is taken back first.

    Raises:
        RefusedError: the facts changed, a foreign edit, a step that the tables do not allow, another run at work.
        RocmPatchError, OSError: it failed and everything is as before.
    """
    with Journal(ground).opened() as journal:
        left = recover_open(journal, tables, kinds, say)
        if left is not None and left.left:
            raise RefusedError(
                f"an earlier run was taken back, but {', '.join(left.left)} had been changed by somebody else",
                "look at these, run 'rocm-patch rollback', then make a new plan",
            )
        active = journal.active() if journal.exists else []
        look = Look(ground, journal.tree, tables, tuple(active))
        parts = render(steps, look, kinds)
        changes = [change for part in parts for change in part.changes]
        _check_fact_names(facts, changes, ground)
        wanted = [change for change in changes if change.grown or look.now(change.path) != change.after]
        if not wanted:
            newest = active[-1].transaction if active else ""
            return Receipt(newest, "already there", (), (), "", (), _undo_path(ground, newest))
        check_facts(facts, changes, look)
        entries, contents = _entries(wanted, look, transaction)
        number = max((record.number for record in active), default=0) + 1
        record = Record(RECORD_SCHEMA, number, transaction, "apply", ground.scope, tuple(steps), entries, (), None)
        made = journal.made() if journal.exists else [*journal.tree.missing_folders(ground.state), ground.state]
        script = undo.script(record, ground, made, contents, finished=False)

        busy = [part for part in parts if any(change in wanted for change in part.changes)]
        watch = contextlib.ExitStack()

        def ready(path: str) -> None:
            for part in busy:
                for change in part.changes:
                    if change.path == path and part.kind.prepare is not None:
                        part.kind.prepare(part.steps, change, Work(ground, journal.tree, tables, transaction, journal.lock, say, watch))

        def finish(draft: Record) -> Record:
            work = Work(ground, journal.tree, tables, transaction, journal.lock, say, watch)
            verified = list[str]()
            generated = [change for part in busy for change in part.kind.activate(part.steps, part.changes, work)]
            draft = _put_generated(journal, draft, generated, made, contents)
            for part in busy:
                verified += part.kind.verify(part.steps, part.changes, work)
            needs: Needs = "reboot" if any(part.kind.needs == "reboot" for part in busy) else _strongest(busy)
            grown_up = _close_grown(journal, draft, contents, made)
            changed = tuple(entry.path for entry in draft.entries if entry.after.kind != "folder")
            receipt = Receipt(transaction, "applied", changed, (), needs, tuple(verified), _undo_path(ground, transaction))
            return dataclasses.replace(grown_up, receipt=receipt)

        with watch:
            done = Transaction(journal, record, ready).run(contents, script, finish)
        assert done.receipt is not None  # noqa: S101  # finish has just put it there
        return done.receipt


def _strongest(parts: Sequence[Part]) -> Needs:
    return "login" if any(part.kind.needs == "login" for part in parts) else ""


def _undo_path(ground: Ground, transaction: str) -> str:
    return ground.on_machine(f"{ground.state}/{transaction}/{UNDO}") if transaction else ""


def _check_fact_names(facts: Mapping[str, str], changes: Sequence[Change], ground: Ground) -> None:
    managed = {ground.label(change.path) for change in changes}
    for label in facts:
        if label.startswith(f"{ground.scope}:") and label not in managed:
            raise RefusedError(f"the plan speaks of {label}, which none of its steps manages")
    for label in sorted(managed - facts.keys()):
        raise RefusedError(f"the plan does not say what it saw at {label}", "make a new plan")


def check_facts(facts: Mapping[str, str], changes: Sequence[Change], look: Look) -> None:
    """Refuse if a path is not as it was when the plan was made.

    Raises:
        RefusedError: names the path.
    """
    for change in changes:
        if facts.get(look.ground.label(change.path)) != look.now(change.path).digest():
            raise RefusedError(f"{change.path} has changed since the plan was made; nothing was written", "make a new plan and look at it")


def _entries(wanted: Sequence[Change], look: Look, transaction: str) -> tuple[tuple[Entry, ...], dict[str, bytes]]:
    folders, entries, contents = dict[str, Entry](), list[Entry](), dict[str, bytes]()
    mode = 0o755 if look.ground.scope == "system" else 0o700
    new_folder = shape_of(grown.folder_state(mode))
    for change in wanted:
        for path in look.tree.missing_folders(look.ground.at(change.path)):
            if not f"{look.ground.state}/".startswith(f"{path}/"):  # those are the journal's, made and removed with it
                folders[path] = Entry(look.ground.on_machine(path), GONE, new_folder)
        now = look.now(change.path)
        for state in (now, change.after):
            if state.kind == "file":
                contents[digest(state.data)] = state.data
        try:
            before, after = shape_of(now), shape_of(change.after)
        except ValueError as error:
            raise RefusedError(f"{change.path} is a device, a socket or a pipe; it is not ours to replace") from error
        if change.grown:
            after = Shape("grown", after.mode, after.uid, after.gid, "", transaction)
        entries.append(Entry(change.path, before, after, line=change.line))
    return (*folders.values(), *entries), contents


def _put_generated(journal: Journal, draft: Record, generated: Sequence[Change], made: list[str], contents: dict[str, bytes]) -> Record:
    """Second half of a transaction: what tools of the system made from the files in place. Journalled, then put there, boot last."""
    entries = list[Entry]()
    if len({change.path for change in generated}) != len(generated):
        raise RefusedError("two steps of the plan make the same file anew", "apply them one after the other, each with a plan of its own")
    for change in generated:
        now = journal.tree.state(journal.ground.at(change.path), CONTENT_LIMIT)
        if now != change.after:
            entries.append(Entry(change.path, shape_of(now), shape_of(change.after), generated=True))
            for state in (now, change.after):
                if state.kind == "file":
                    contents[journal.keep(draft, state.data)] = state.data
    if not entries:
        return draft
    record = dataclasses.replace(draft, entries=(*draft.entries, *entries))
    if draft.verb == "apply":
        journal.replace_undo(record, undo.script(record, journal.ground, made, contents, finished=False))
    journal.write_plan(record)
    for entry in entries:
        Transaction(journal, record).move(entry)
    return record


def _close_grown(journal: Journal, draft: Record, contents: Mapping[str, bytes], made: list[str]) -> Record:
    """Write down what is in each folder that a child filled, now that it is finished."""
    if not any(entry.after.kind == "grown" for entry in draft.entries):
        return draft
    entries, known = list[Entry](), dict(contents)
    for entry in draft.entries:
        after = entry.after
        if after.kind == "grown":
            listing = grown.manifest(journal.tree, journal.ground.at(entry.path))
            after = dataclasses.replace(after, sha256=journal.keep(draft, listing))
            known[after.sha256] = listing
            journal.keep_as(draft, f"{after.sha256}.sums", grown.sums(listing))
        entries.append(dataclasses.replace(entry, after=after))
    record = dataclasses.replace(draft, entries=tuple(entries))
    journal.replace_undo(record, undo.script(record, journal.ground, made, known, finished=True))
    return record


# ------------------------------------------------------------------ rollback


def rollback_scope(
    ground: Ground, kinds: Sequence[Kind], tables: Tables, names: Sequence[str] = (), *, everything: bool = False,
    forget: bool = False, say: Say = lambda _: None,
) -> Receipt:  # fmt: skip
    """Take back transactions of one scope, newest first, as one transaction of its own.

    What others changed stays, and with it the record of what was there before us. `forget` lets go of those records too.

    Raises:
        RefusedError: no such transaction, or a newer one stands on it, or another run at work.
        RocmPatchError, OSError: it failed and everything is as before the rollback.
    """
    with Journal(ground).opened() as journal, contextlib.ExitStack() as watch:
        recover_open(journal, tables, kinds, say)
        active = list(reversed(journal.active())) if journal.exists else []
        selected = active if everything else [record for record in active if record.transaction in names]
        for name in names:
            if name not in {record.transaction for record in active}:
                raise RefusedError(f"there is no transaction {name} in force in {ground.scope} scope", "see 'rocm-patch status'")
        if not selected:
            return Receipt("", "nothing to undo", (), (), "", (), "")
        _check_order(active, selected)
        for kind, mine in _by_kind(selected, tables, kinds):
            if kind.release is not None:
                kind.release(mine, Look(ground, journal.tree, tables, tuple(reversed(active))))
        name = new_transaction()
        work = _work_back(journal, selected, name, tables, say, watch)
        # Before anything is read: what is composed from is what is moved.
        _hold(selected, work, kinds)
        undoing = compose(journal, selected)
        newest = selected[0].transaction
        shown = tuple(versions.difference(journal, selected, path) for path in undoing.left)
        undoes = tuple(record.transaction for record in selected) if forget else undoing.undoes
        if not undoes and not undoing.entries:
            return Receipt(newest, "partly rolled back", (), undoing.left, "", (), "", shown)
        number = max(record.number for record in active) + 1
        record = Record(RECORD_SCHEMA, number, name, "rollback", ground.scope, (), undoing.entries, undoes, None)

        def finish(draft: Record) -> Record:
            again = _generated_again(undoing.stale, selected, work, kinds)
            draft = _put_generated(journal, draft, again, [], {})
            transaction = Transaction(journal, draft)
            changed = tuple(
                entry.path for entry in draft.entries if entry.before.kind != "folder" and transaction.is_at(entry.path, entry.after)
            )  # fmt: skip
            exact = {entry.path for entry in undoing.entries}
            said = [f"{path}: {'as it was' if path in exact else 'made anew without our change'}" for path in changed]
            seen = _seen_back(selected, work, kinds)
            unfinished = tuple(str(line) for _, line in seen if isinstance(line, Unfinished))
            verified = (*said, *(line for _, line in seen if not isinstance(line, Unfinished)))
            # What still holds our change is not forgotten: its transactions stay, and another rollback finds them.
            of_those = {kind for kind, line in seen if isinstance(line, Unfinished) and not isinstance(line, Unseen) and not forget}
            kept = {one.transaction for one in selected for kind, _ in _by_kind([one], tables, kinds) if kind.name in of_those}
            draft = dataclasses.replace(draft, undoes=tuple(one for one in draft.undoes if one not in kept))
            outcome = "partly rolled back" if undoing.left or unfinished else "rolled back"
            needs = _needs(selected, tables, kinds) if changed else ""
            receipt = Receipt(newest, outcome, changed, undoing.left, needs, verified, "", shown, unfinished)  # type: ignore[arg-type]
            return dataclasses.replace(draft, receipt=receipt)

        done = Transaction(journal, record).run(undoing.contents, b"", finish)
        try:
            journal.sweep()
        except OSError as error:
            raise RocmPatchError(
                f"it was taken back, but the journal could not be cleaned: {error.strerror}", "run 'rocm-patch recover' when the disk works again"
            ) from error
        assert done.receipt is not None  # noqa: S101  # finish has just put it there
        return done.receipt


def _work_back(journal: Journal, selected: Sequence[Record], name: str, tables: Tables, say: Say, watch: contextlib.ExitStack) -> Work:
    return Work(journal.ground, journal.tree, tables, name, journal.lock, say, watch, back=True, recorded=_recorded(selected, journal))


def _generated_again(stale: Sequence[str], selected: Sequence[Record], work: Work, kinds: Sequence[Kind]) -> list[Change]:
    """Somebody generated these from our files: once those are gone it is done once more."""
    changes = tuple(Change(path, work.tree.state(work.ground.at(path), CONTENT_LIMIT)) for path in stale)
    asked = [(kind, mine) for kind, mine in _by_kind(selected, work.tables, kinds) if stale or kind.asked_back]
    return [change for kind, mine in asked for change in kind.activate(mine, changes, work)]


def _hold(selected: Sequence[Record], work: Work, kinds: Sequence[Kind]) -> None:
    paths = tuple(dict.fromkeys(entry.path for record in selected for entry in record.entries))
    for kind in kinds:
        if kind.hold is not None:
            kind.hold(paths, work)


def _recorded(selected: Sequence[Record], journal: Journal) -> Callable[[str], list[tuple[bytes, bytes]]]:
    def recorded(path: str) -> list[tuple[bytes, bytes]]:
        found = [(record, entry) for record in selected for entry in record.entries if entry.path == path]
        return [(journal.content(record, entry.before).data, journal.content(record, entry.after).data) for record, entry in found]

    return recorded


def recover_open(journal: Journal, tables: Tables | None, kinds: Sequence[Kind], say: Say) -> Receipt | None:
    """Take back what an earlier run left open, and what others generated from it meanwhile. None: there was nothing.

    Raises:
        RocmPatchError, OSError: it failed and can be repeated.
    """
    watch = contextlib.ExitStack()

    def work_of(opened: Record) -> Work:
        return _work_back(journal, [opened], opened.transaction, tables or _load(), say, watch)

    def again(opened: Record, stale: Sequence[str]) -> list[tuple[str, State]]:
        try:
            found = _generated_again(stale, [opened], work_of(opened), kinds)
        except (RocmPatchError, OSError) as error:
            # What is ours is back in any case, and the machine must not be stuck in a recovery that its tools refuse, or in one
            # that meets a link or a damaged file of somebody else's.
            say(f"files that the system's tools generate could not be looked at: {words_of(error)}; make them anew by hand")
            return []
        return [(change.path, change.after) for change in found]

    @contextlib.contextmanager
    def hold(opened: Record) -> Iterator[None]:
        with watch:
            _hold([opened], work_of(opened), kinds)
            yield

    return recover(journal, again, hold)


def _load() -> Tables:
    from rocm_patch import knowledge

    return knowledge.load()


def _seen_back(selected: Sequence[Record], work: Work, kinds: Sequence[Kind]) -> list[tuple[str, str]]:
    """The name of each kind with what it sees."""
    return [(kind.name, line) for kind, mine in _by_kind(selected, work.tables, kinds) if kind.asked_back for line in kind.verify(mine, (), work)]


def _by_kind(selected: Sequence[Record], tables: Tables, kinds: Sequence[Kind]) -> list[tuple[Kind, tuple[Step, ...]]]:
    steps = [step for record in selected for step in record.steps if step.remedy in tables.remedies]
    parts = [(kind, tuple(step for step in steps if tables.remedies[step.remedy].kind == kind.name)) for kind in kinds]
    return [(kind, mine) for kind, mine in parts if mine]


def _check_order(active: Sequence[Record], selected: Sequence[Record]) -> None:
    """A transaction on which a newer one stands does not go alone. `active` is newest first."""
    chosen = {record.transaction for record in selected}
    above = dict[str, str]()
    for record in active:
        paths = {entry.path for entry in record.entries}
        folders = tuple(f"{entry.path}/" for entry in record.entries if entry.after.kind in ("folder", "grown"))
        if record.transaction not in chosen:
            above |= dict.fromkeys(paths, record.transaction)
        elif shared := paths & above.keys() | {path for path in above if path.startswith(folders)}:
            later = sorted({above[path] for path in shared})
            raise RefusedError(
                f"a later transaction ({', '.join(later)}) changed {', '.join(sorted(shared))} again, "
                f"so {record.transaction} cannot be taken back alone",
                f"take the later one back first: rocm-patch rollback {later[-1]}; or all: rocm-patch rollback --all",
            )


def _needs(selected: Sequence[Record], tables: Tables, kinds: Sequence[Kind]) -> Needs:
    by_name = {kind.name: kind.needs for kind in kinds}
    rows = [tables.remedies.get(step.remedy) for record in selected for step in record.steps]
    needs = {by_name.get(row.kind, "") for row in rows if row is not None}
    return "reboot" if "reboot" in needs else "login" if "login" in needs else ""


# ------------------------------------------------------------------ looking


@dataclass(frozen=True)
class ManagedFile:
    """A path of ours and how it stands."""

    path: str
    state: str
    """as left, changed, gone, or generated again (by a tool of the system, from our files among others)"""


@dataclass(frozen=True)
class ScopeStatus:
    """What is in force in one scope."""

    scope: str
    readable: bool
    """False: the journal belongs to root; `files` then tells only of the drop-in."""
    open: str
    """A transaction that did not come to its end, or that is under way."""
    transactions: tuple[Record, ...]
    files: tuple[ManagedFile, ...]


def status_scope(ground: Ground) -> ScopeStatus:
    """Read the journal without the lock; nothing is written.

    Raises:
        RocmPatchError: it cannot be read.
    """
    try:
        return _status(ground)
    except OSError as error:
        where = error.filename or ground.on_machine(ground.state)
        raise RocmPatchError(f"what is in force cannot be told: {error.strerror or error}: {where}") from error


def _status(ground: Ground) -> ScopeStatus:
    journal = Journal(ground)
    try:
        opened, active = journal.open_record(), journal.active()
    except (PermissionError, RefusedError):
        return ScopeStatus(ground.scope, False, "", (), _by_its_own_words(ground, journal))
    files = dict[str, ManagedFile]()
    for record in active:
        for entry in record.entries:
            if entry.after.kind in ("folder", "absent") and entry.before.kind == "absent":
                continue
            at_after = Transaction(journal, record).is_at(entry.path, entry.after)
            gone = entry.after.kind != "absent" and journal.tree.state_kind(ground.at(entry.path)) == "absent"
            other = "generated again" if entry.generated else "changed"
            files[entry.path] = ManagedFile(entry.path, "as left" if at_after else "gone" if gone else other)
    return ScopeStatus(ground.scope, True, opened.transaction if opened else "", tuple(active), tuple(files.values()))


def _by_its_own_words(ground: Ground, journal: Journal) -> tuple[ManagedFile, ...]:
    path = environment.path_in(ground)
    now = journal.tree.state(ground.at(path))
    if now.kind == "absent":
        return ()
    return (ManagedFile(path, "as left" if environment.reads_as_ours(now, "shell" if ground.scope == "system" else "conf") else "changed"),)


__all__ = [
    "ManagedFile", "Outlook", "Part", "ScopeStatus", "apply_scope", "check_facts", "kind_of", "new_transaction", "outlook_scope", "peek",
    "preview_scope", "recover_open", "render", "rollback_scope", "status_scope", "validate",
]  # fmt: skip
