"""Who may open the GPU's device nodes: a udev rule of ours, and the membership of a named user in one group.

The rule is a file of ours. The membership is one word in /etc/group and in /etc/gshadow, which nobody can put into a file of
his own: the rules file says in a remark that it is ours, and the two files count as generated from that remark. So their bytes
are journalled, put in place last, and put back exactly; where other users or groups came since, only our word is taken out.
`usermod` is not used for it: it would write outside of the journal, and a kill in between would leave what nobody knows of.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rocm_patch.changes import system_tools
from rocm_patch.changes.group_file import GROUP, GSHADOW, has_user, members, with_member, without_member
from rocm_patch.changes.kind import NOTE, Change, Held, Kind, Look, Tables, Unfinished, Work
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Step
from rocm_patch.root import State
from rocm_patch.run import run

PATH: Final = "/etc/udev/rules.d/70-rocm-patch.rules"
"""Before 73-seat-late.rules, which gives the user at the machine what is tagged uaccess."""
GROUPS: Final = ("render", "video")
"""The groups that distributions make for GPUs. No other is ever joined: `disk` or `sudo` would be a gift to everybody's programs."""
ACCESS: Final = ("group", "seat")
LOCK: Final = "/etc/.pwd.lock"
"""What passwd, usermod and gpasswd hold while they change users and groups."""
LOCK_WAIT: Final = 15.0
UDEVADM: Final = ("/usr/bin/udevadm", "/bin/udevadm", "/sbin/udevadm")
_PARAMETERS: Final = ("user", "group", "access")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HEAD: Final = """\
# Settings of rocm-patch for PyTorch on AMD cards. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
_JOINED: Final = re.compile(r"# joined by rocm-patch: user (?P<user>\S+), group (?P<group>\S+)")
_RULE: Final = re.compile(r'SUBSYSTEM=="kfd", KERNEL=="kfd", (?P<rest>.+)')


@dataclass(frozen=True)
class Rules:
    """What our rules file says."""

    group: str = ""
    access: str = ""
    joined: tuple[tuple[str, str], ...] = ()


# ------------------------------------------------------------------ validate


def validate(step: Step, _tables: Tables) -> None:
    """Check that a step names one user and a group of GPUs, or a way of access.

    Raises:
        RefusedError: which it is not.
    """
    for key in step.parameters:
        if key not in _PARAMETERS:
            raise RefusedError(f"remedy {step.remedy}: a permissions step has no parameter {key!r}")
        if len(step.parameters[key]) != 1:
            raise RefusedError(f"remedy {step.remedy}: {key!r} is given once")
    user, group, access = (_one(step, key) for key in _PARAMETERS)
    if group not in GROUPS:
        raise RefusedError(f"{group!r} is no group of GPUs", "known: " + ", ".join(GROUPS))
    if access and access not in ACCESS:
        raise RefusedError(f"{access!r} is no way of access", "known: " + ", ".join(ACCESS))
    if "user" in step.parameters and (not _USER.fullmatch(user) or user == "root"):
        raise RefusedError(f"{user!r} cannot be the user who joins a group", "name one: --set user=NAME")


def _one(step: Step, key: str) -> str:
    return next(iter(step.parameters.get(key, ())), "render" if key == "group" else "")


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """Our rules file, with the rule and the memberships that these steps add.

    Raises:
        RefusedError: the file is there and is not as we left it, or there is no such user or group.
    """
    now = look.now(PATH)
    rules = Rules()
    if now.kind != "absent":
        if not (look.ours(PATH) if look.journal_read else reads_as_ours(now)):
            raise RefusedError(
                f"{PATH} is there and is not as rocm-patch left it; it stays as it is", f"look at it, and move it away: sudo mv {PATH} ~/"
            )  # fmt: skip
        rules = parse(now.data)
    group_file = _group_file(look)
    for step in steps:
        user, group, access = (_one(step, key) for key in _PARAMETERS)
        listed = members(group_file, group)
        if listed is None:
            raise RefusedError(f"{GROUP} has no group {group}", f"sudo groupadd --system {group}")
        if "user" not in step.parameters:
            rules = replace(rules, group=group, access=access or "group")
        elif user not in listed:
            _check_user(user, look)
            rules = replace(rules, joined=(*rules.joined, (user, group)))
    if rules == Rules():
        return ()  # who is asked for is a member already
    data = text_of(rules).encode()
    return (Change(PATH, now if now.data == data else State("file", 0o644, os.geteuid(), os.getegid(), data)),)


def _group_file(look: Look) -> bytes:
    state = look.now(GROUP)
    if state.kind != "file":
        raise RefusedError(
            f"{GROUP} is {'a link' if state.kind == 'link' else state.kind}, so groups are kept elsewhere",
            "join the group by your system's own means",
        )
    return state.data


def _check_user(user: str, look: Look) -> None:
    state = look.now("/etc/passwd")
    if state.kind == "file" and has_user(state.data, user):
        return
    with contextlib.suppress(KeyError):
        if look.ground.live and pwd.getpwnam(user):
            return  # from a directory service: the local group file may list such a user as well
    raise RefusedError(f"there is no user {user} on this machine")


def text_of(rules: Rules) -> str:
    """The file's text; `parse` reads it back."""
    text = _HEAD + "".join(f"# joined by rocm-patch: user {user}, group {group}\n" for user, group in rules.joined)
    if rules.access:
        rest = f'GROUP="{rules.group}", MODE="0660"' + (', TAG+="uaccess"' if rules.access == "seat" else "")
        text += f'SUBSYSTEM=="kfd", KERNEL=="kfd", {rest}\nSUBSYSTEM=="drm", KERNEL=="renderD*", DRIVERS=="amdgpu", {rest}\n'
    return text


def parse(data: bytes) -> Rules:
    """Read a file of ours.

    Raises:
        FormatError: it is not to the letter what we would write.
    """
    rules = Rules()
    for line in data.decode("utf-8", "replace").removeprefix(_HEAD).splitlines():
        joined, rule = _JOINED.fullmatch(line), _RULE.fullmatch(line)
        if joined is not None:
            rules = replace(rules, joined=(*rules.joined, (joined["user"], joined["group"])))
        elif rule is not None:
            group = next((item for item in GROUPS if f'GROUP="{item}"' in rule["rest"]), "")
            rules = replace(rules, group=group, access="seat" if "uaccess" in rule["rest"] else "group")
    if text_of(rules).encode() != data:
        raise FormatError("the rules file has a line that is not one of ours")
    return rules


def reads_as_ours(now: State) -> bool:
    """Whether a file is exactly what we would write."""
    try:
        return now.kind == "file" and bool(parse(now.data))
    except FormatError:
        return False


def also(steps: Sequence[Step], look: Look) -> tuple[str, ...]:
    """The group files, which are changed after our rules file and from it."""
    files = ", ".join(path for path in (GROUP, GSHADOW) if look.tree.state_kind(look.ground.at(path)) == "file")
    named = dict.fromkeys((_one(step, "user"), _one(step, "group")) for step in steps if "user" in step.parameters)
    group_file = _group_file(look)
    return tuple(f"{files}: {user} joins {group}" for user, group in named if user not in (members(group_file, group) or ()))


# ------------------------------------------------------------------ activate, verify


def activate(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """The group files with our word in them; udev is asked to look at the nodes again.

    In a rollback `changes` are the group files that others changed since: those lose our word and nothing else. Who was a
    member before us stays one: a plan may name such a user beside one who joins.

    Raises:
        RefusedError: another program is changing users and groups.
    """
    found = list[Change]()
    named = [(_one(step, "user"), _one(step, "group")) for step in steps if "user" in step.parameters]
    stale = {change.path for change in changes} if work.back else set()
    joined = () if work.back else parse(_data(PATH, work)).joined
    if named and not work.back:  # on the way back `hold` has it: the lock is this process's, and closing it twice would let go of it
        work.watch.enter_context(_locked(work))
    for path in (GROUP, GSHADOW) if named else ():
        now = work.tree.state(work.ground.at(path))
        data = now.data
        with contextlib.suppress(FormatError) if work.back else contextlib.nullcontext():  # `verify` says what stayed
            for user, group in _joined_in(path, named, work) if path in stale else ():
                data = without_member(data, group, user)
        for user, group in named:
            if (user, group) in joined:  # not who was a member before us
                data = with_member(data, group, user)
        if data != now.data:
            found.append(Change(path, replace(now, data=data)))
    if len(named) < len(steps):
        _trigger(work)
    return tuple(found)


def hold(paths: Sequence[str], work: Work) -> None:
    """A rollback or a recovery that may write the group files holds what passwd and its kin hold, from before it reads them.

    Raises:
        RefusedError: another program is changing users and groups.
    """
    if {GROUP, GSHADOW} & set(paths):
        work.watch.enter_context(_locked(work))


def _joined_in(path: str, named: Sequence[tuple[str, str]], work: Work) -> list[tuple[str, str]]:
    """Who of these stands in a group file by what is taken back: not there when we came, there when we went."""
    texts = work.recorded(path)
    return [
        (user, group)
        for user, group in dict.fromkeys(named)
        if any(user not in (members(old, group) or ()) and user in (members(new, group) or ()) for old, new in texts)
    ]


def _data(path: str, work: Work) -> bytes:
    return work.tree.state(work.ground.at(path)).data


@contextlib.contextmanager
def _locked(work: Work) -> Iterator[None]:
    """Hold the lock of passwd and its kin until our files are in place; where the file is not, nobody uses it."""
    try:
        descriptor = os.open(work.ground.host(LOCK), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        until = time.monotonic() + LOCK_WAIT
        while True:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise RefusedError("another program is changing users and groups", "try again when it has come to its end") from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _trigger(work: Work) -> None:
    """Let udev apply its rules to the nodes that are there; without its daemon the next start does."""
    tool = next((path for path in UDEVADM if os.access(path, os.X_OK)), "")
    if not work.ground.live or not tool or not os.path.exists("/run/udev/control"):
        return
    for words in (["control", "--reload"], ["trigger", "--action=add", "--subsystem-match=kfd", "--subsystem-match=drm", "--settle"]):
        ended = run([tool, *words], timeout=30)
        if ended.code != 0:
            work.say(f"udevadm {words[0]} ended with {ended.code}; the rule counts after a restart")


def _stayed(steps: Sequence[Step], work: Work) -> Iterator[Unfinished]:
    """Our memberships that are there after a rollback: in a file that cannot be read, or put there again in this moment."""
    named = [(_one(step, "user"), _one(step, "group")) for step in steps if "user" in step.parameters]
    for path in (GROUP, GSHADOW):
        for user, group in _joined_in(path, named, work):
            by_hand = f"To be done there: {system_tools.words_for(work.ground, f'gpasswd -d {user} {group}')}"
            try:
                if user in (members(_data(path, work), group) or ()):
                    yield Unfinished(f"{path} still lists {user} in {group}. {by_hand}")
            except FormatError as error:
                yield Unfinished(f"{path} cannot be read, so {user} may still be in {group}: {error.what}. {by_hand}")


def verify(steps: Sequence[Step], changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read the rule and the member lists back; udev's own judge is asked where it knows how.

    Raises:
        RocmPatchError: it does not hold.
    """
    if work.back:
        return tuple(_stayed(steps, work))
    said = []
    for change in changes:
        if _data(change.path, work) != change.after.data:
            raise RocmPatchError(f"{change.path} does not read back as it was written")
    rules = parse(_data(PATH, work)) if changes else Rules()
    for user, group in rules.joined:
        for path in (GROUP, GSHADOW):
            listed = members(_data(path, work), group)
            if listed is not None and user not in listed:
                raise RocmPatchError(f"{path} does not list {user} in {group}")
        if work.ground.live and user not in grp.getgrnam(group).gr_mem:
            raise RocmPatchError(
                f"the system does not see {user} in {group}, although {GROUP} lists it", "look at the group line of /etc/nsswitch.conf"
            )
        said += [f"{GROUP}: {user} is in {group}", f"{NOTE}in force in sessions of {user} that begin from now on; not in those that are open"]
    if rules.access:
        said.append(
            f"{PATH}: /dev/kfd and render nodes of amdgpu for {'the user at the machine and ' * (rules.access == 'seat')}the group {rules.group}"
        )
        said += _judged(work)
    return tuple(said)


def _judged(work: Work) -> list[str]:
    tool = next((path for path in UDEVADM if os.access(path, os.X_OK)), "")
    ended = run([tool, "verify", work.ground.host(PATH)], timeout=30) if tool else None
    if ended is None or "Unknown command" in ended.text:
        return [f"{NOTE}udev's own judge of rules (udevadm verify, systemd 254) is not on this system; read back only"]
    if ended.code != 0:
        raise RocmPatchError(f"udevadm verify does not accept the rule: {ended.text}")
    return ["udevadm verify: no word against it"]


# ------------------------------------------------------------------ what is in force


def in_force(_steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Members by the group file, sessions by this process, nodes by their mode."""
    now = look.now(PATH)
    if not reads_as_ours(now):
        return ()
    rules, found = parse(now.data), list[Held]()
    state = look.now(GROUP)
    for user, group in rules.joined:
        listed = members(state.data, group) or ()
        held = Held(f"{user} in {group}", "member", "member" if user in listed else None, GROUP, user in listed)
        if held.holds and look.ground.live and _is_me(user):
            mine = grp.getgrnam(group).gr_gid in (os.getegid(), *os.getgroups())
            held = replace(held, holds=mine, why="" if mine else "this session is older than the membership: log out and in again")
        found.append(held)
    if rules.access:
        found.append(_node(rules.group, look))
    return tuple(found)


def _is_me(user: str) -> bool:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name == user
    except KeyError:
        return False


def _node(group: str, look: Look) -> Held:
    wanted = f"0660 {group}"
    if not look.ground.live:
        return Held("/dev/kfd", wanted, None, "/dev/kfd", None, "this is not the running system")
    try:
        status = os.stat("/dev/kfd")
        found = f"{stat.S_IMODE(status.st_mode):04o} {grp.getgrgid(status.st_gid).gr_name}"
    except (OSError, KeyError):
        return Held("/dev/kfd", wanted, None, "/dev/kfd", None, "there is no such node")
    return Held("/dev/kfd", wanted, found, "/dev/kfd", found == wanted, "" if found == wanted else "restart the machine, or: sudo udevadm trigger")


KIND: Final = Kind("permissions", ("system",), "login", validate, render, activate, verify, in_force=in_force, asked_back=True, hold=hold, also=also)
