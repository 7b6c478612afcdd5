"""Who may open the card: the rule, one word in the group files, and that others' words in them stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import DieAt, Killed, clone, count_operations, prepare, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts, how_to_remove, recover, rollback, status
from rocm_patch.changes import KINDS, Locations, in_force, outlook, permissions, preview
from rocm_patch.changes.group_file import members, with_member, without_member
from rocm_patch.changes.permissions import Rules, parse, text_of
from rocm_patch.cli.changing import finish
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.model import SCHEMA, Plan, Step

TABLES = knowledge.load()
RULES = "etc/udev/rules.d/70-rocm-patch.rules"
GROUP = "root:x:0:\nvideo:x:44:bo\nrender:x:109:\nusers:x:100:alice,bo\n"
GSHADOW = "root:*::\nvideo:!::bo\nrender:!::\nusers:*::alice,bo\n"
PASSWD = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nbo:x:1001:1001::/home/bo:/bin/sh\n"
RULE = Step("kfd-udev-rule", "system", {"group": ("render",)})


def join(user="alice", group="render"):
    return Step("device-group", "system", {"user": (user,), "group": (group,)})


@pytest.fixture
def root(tmp_path):
    root = prepare(tmp_path / "root")
    for name, text, mode in (("group", GROUP, 0o644), ("gshadow", GSHADOW, 0o640), ("passwd", PASSWD, 0o644)):
        Path(f"{root}/etc/{name}").write_text(text)
        os.chmod(f"{root}/etc/{name}", mode)
    return root


def where(root):
    return Locations(str(root))


def do(root, *steps):
    (receipt,) = apply(Plan(SCHEMA, steps, facts(steps, where(root))), where(root), say=lambda _: None)
    return receipt


def read(root, name):
    return Path(f"{root}/etc/{name}").read_text()


def test_there_and_back_to_the_byte(root):
    before = snapshot(root)
    assert outlook((join(), RULE), where(root)).also == ("/etc/group, /etc/gshadow: alice joins render",)
    receipt = do(root, join(), RULE)
    assert outlook((join(), RULE), where(root)).also == ()
    assert read(root, "group") == GROUP.replace("render:x:109:", "render:x:109:alice")
    assert read(root, "gshadow") == GSHADOW.replace("render:!::", "render:!::alice")
    assert os.stat(f"{root}/etc/gshadow").st_mode & 0o777 == 0o640
    assert Path(f"{root}/{RULES}").read_text().splitlines()[2:] == [
        "# joined by rocm-patch: user alice, group render",
        'SUBSYSTEM=="kfd", KERNEL=="kfd", GROUP="render", MODE="0660"',
        'SUBSYSTEM=="drm", KERNEL=="renderD*", DRIVERS=="amdgpu", GROUP="render", MODE="0660"',
    ]
    assert "/etc/group: alice is in render" in receipt.verified
    assert do(root, join(), RULE).outcome == "already there"
    rollback(where(root), everything=True)
    assert snapshot(root) == before


def test_what_others_added_since_stays(root):
    """A package that brings a group, a user who joins another one: only our word goes."""
    do(root, join())
    Path(f"{root}/etc/group").write_text(read(root, "group").replace("alice", "alice,bo", 1) + "docker:x:999:alice\n")
    assert {file.path: file.state for item in status(where(root)) for file in item.files}["/etc/group"] == "generated again"
    (receipt,) = rollback(where(root), everything=True)
    assert receipt.outcome == "rolled back"
    assert read(root, "group") == GROUP.replace("render:x:109:", "render:x:109:bo") + "docker:x:999:alice\n"
    assert read(root, "gshadow") == GSHADOW


def test_who_is_a_member_already_stays_one(root):
    before = snapshot(root)
    assert do(root, join("bo", "video")).outcome == "already there"
    assert snapshot(root) == before


def test_by_a_seat(root):
    do(root, Step("kfd-udev-rule", "system", {"group": ("video",), "access": ("seat",)}))
    text = Path(f"{root}/{RULES}").read_text()
    assert text.count('GROUP="video", MODE="0660", TAG+="uaccess"') == 2


BAD = {
    "root": (join("root"), "cannot be the user"),
    "nobody known": (join("carol"), "no user carol"),
    "a name with a colon": (join("a:b"), "cannot be the user"),
    "a powerful group": (join(group="sudo"), "no group of GPUs"),
    "a group that is not there": (Step("device-group", "system", {"user": ("alice",), "group": ("video",)}), "no group video"),
    "no way of access": (Step("kfd-udev-rule", "system", {"access": ("all",)}), "no way of access"),
    "two users": (Step("device-group", "system", {"user": ("alice", "bo")}), "given once"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(root, case):
    step, words = BAD[case]
    if case == "a group that is not there":
        Path(f"{root}/etc/group").write_text(GROUP.replace("video", "other"))
    before = snapshot(root)
    with pytest.raises(RefusedError, match=words):
        preview((step,), where(root))
    assert snapshot(root) == before


def test_a_group_file_that_is_a_link_is_not_touched(root):
    os.rename(f"{root}/etc/group", f"{root}/etc/group.real")
    os.symlink("group.real", f"{root}/etc/group")
    with pytest.raises(RefusedError, match="a link"):
        preview((join(),), where(root))


def test_the_lock_of_passwd_is_waited_for(root, monkeypatch):
    """Held by another process for longer than we wait: refused, and everything is as before."""
    Path(f"{root}/etc/.pwd.lock").touch(0o600)
    before = snapshot(root)
    script = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, f"{root}/etc/.pwd.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        monkeypatch.setattr(permissions, "LOCK_WAIT", 0.3)
        with pytest.raises(RefusedError, match="another program is changing users"):
            do(root, join())
        assert snapshot(root) == before
        other.stdin.close()
        other.wait()
    do(root, join())
    with open(f"{root}/etc/.pwd.lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any longer
    rollback(where(root), everything=True)


@contextlib.contextmanager
def users_being_changed(root):
    script = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    Path(f"{root}/etc/.pwd.lock").touch(0o600)
    with subprocess.Popen([sys.executable, "-c", script, f"{root}/etc/.pwd.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield
        other.stdin.close()
        other.wait()


def test_a_rollback_waits_for_the_lock_of_passwd_as_well(root, monkeypatch):
    """It moved the old bytes into place without the lock: a useradd at work put back what it had read, our member with it."""
    Path(f"{root}/etc/.pwd.lock").touch(0o600)
    before = snapshot(root)
    do(root, join())
    applied = snapshot(root)
    monkeypatch.setattr(permissions, "LOCK_WAIT", 0.3)
    with users_being_changed(root):
        with pytest.raises(RefusedError, match="another program is changing users"):
            rollback(where(root), everything=True)
        assert snapshot(root) == applied
    rollback(where(root), everything=True)
    assert snapshot(root) == before


def test_so_does_a_recovery(root, monkeypatch):
    before, step = snapshot(root), (join(),)
    fact = facts(step, where(root))
    total = count_operations(lambda observe: apply(Plan(SCHEMA, step, fact), Locations(str(clone(root, f"{root}.0")), observe=observe)))
    for point in range(total, 0, -1):  # the last moments, until one that left the transaction open with our word in place
        copy = clone(root, f"{root}.1")
        with contextlib.suppress(Killed):
            apply(Plan(SCHEMA, step, fact), Locations(str(copy), observe=DieAt(point)))
        if status(where(copy))[0].open and "render:x:109:alice" in read(copy, "group"):
            break
    else:
        pytest.fail("no kill left it open")
    monkeypatch.setattr(permissions, "LOCK_WAIT", 0.3)
    with users_being_changed(copy), pytest.raises(RefusedError, match="another program is changing users"):
        recover(where(copy))
    assert "render:x:109:alice" in read(copy, "group")
    os.unlink(f"{copy}/etc/.pwd.lock")
    recover(where(copy))
    assert snapshot(copy) == before


def test_who_was_a_member_before_us_stays_one_in_files_that_others_changed(root):
    """The plan named both; only one of them joined by it."""
    do(root, join(), join("bo", "video"))
    for name in ("group", "gshadow"):
        Path(f"{root}/etc/{name}").write_text(read(root, name) + "docker:x:999:\n")
    (receipt,) = rollback(where(root), everything=True)
    assert read(root, "group") == GROUP + "docker:x:999:\n"
    assert read(root, "gshadow") == GSHADOW + "docker:x:999:\n"
    assert "/etc/group: as it was" not in receipt.verified
    assert "/etc/group: made anew without our change" in receipt.verified


def test_a_membership_that_cannot_be_taken_out_is_told_and_stays_on_record(root):
    """Two lines of one group: which one counts is not ours to say, and it must not be called rolled back."""
    do(root, join())
    ours = read(root, "group")
    Path(f"{root}/etc/group").write_text(ours + "render:x:110:\n")
    (receipt,) = rollback(where(root), everything=True)
    assert receipt.outcome == "partly rolled back"
    assert "/etc/group" in receipt.unfinished[0]
    assert "gpasswd -d alice render" in receipt.unfinished[0]
    assert not [line for line in receipt.verified if "gpasswd" in line]
    assert finish((receipt,), where(root), as_json=True) == 5
    assert not how_to_remove(receipt, str(root))  # never: rm /etc/group
    Path(f"{root}/etc/group").write_text(ours + "docker:x:999:\n")
    assert rollback(where(root), everything=True)[0].outcome == "rolled back"
    assert read(root, "group") == GROUP + "docker:x:999:\n"
    assert status(where(root))[0].transactions == ()


def test_the_script_names_the_right_way_back_for_group_files(root):
    do(root, join())
    Path(f"{root}/etc/group").write_text(read(root, "group") + "docker:x:999:\n")
    script = next(Path(f"{root}/var/lib/rocm-patch").glob("2*/undo.sh"))
    ended = subprocess.run(["sh", str(script), str(root)], capture_output=True, text=True, check=False)
    assert ended.returncode == 5
    assert "gpasswd -d alice render" in ended.stderr
    assert "update-grub" not in ended.stderr


def test_status(root):
    do(root, join(), RULE)
    member, node = in_force.seen(where(root).ground("system"), TABLES, KINDS)
    assert (member.name, member.holds) == ("alice in render", True)
    assert (node.name, node.holds) == ("/dev/kfd", None)
    Path(f"{root}/etc/group").write_text(GROUP)
    assert in_force.seen(where(root).ground("system"), TABLES, KINDS)[0].holds is False


# ------------------------------------------------------------------ texts

NAMES = st.sampled_from(["alice", "bo", "c-d", "e_1"])
LINES = st.lists(st.tuples(st.sampled_from(["render", "video", "renderers", "xrender"]), st.lists(NAMES, unique=True)), unique_by=lambda row: row[0])


@given(LINES, st.booleans(), NAMES)
@settings(max_examples=300, deadline=None)
def test_one_word_in_and_out(rows, last_newline, user):
    data = "\n".join(f"{name}:x:{number}:{','.join(listed)}" for number, (name, listed) in enumerate(rows)).encode() + b"\n" * last_newline
    before = members(data, "render")
    after = with_member(data, "render", user)
    if before is None or user in before:
        assert after == data
    else:
        assert members(after, "render") == (*before, user)
        assert without_member(after, "render", user) == data
        assert [row for row in after.split(b"\n") if not row.startswith(b"render:")] == [
            row for row in data.split(b"\n") if not row.startswith(b"render:")
        ]


@given(st.lists(st.tuples(NAMES, st.sampled_from(["render", "video"])), max_size=3), st.sampled_from(["", "group", "seat"]))
def test_the_rules_file_reads_back(joined, access):
    rules = Rules("render" if access else "", access, tuple(joined))
    assert parse(text_of(rules).encode()) == rules


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_only_format_errors_leave_the_parsers(data):
    for read_ in (parse, lambda raw: members(raw, "render")):
        with contextlib.suppress(FormatError):
            read_(data)
