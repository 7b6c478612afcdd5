"""The environment drop-in: what it does in real shells, what is refused, and that it reads back."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from changes_support import ENVIRONMENT_STEPS, TABLES, TEST_KINDS, do_apply, prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch import knowledge
from rocm_patch.changes import Locations, environment_check, preview
from rocm_patch.changes.environment_text import Setting, parse, text_of
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.model import Step

DROP_IN = "etc/profile.d/zz-rocm-patch.sh"
SHELLS = [shell for shell in ("sh", "dash", "bash", "zsh", "busybox") if shutil.which(shell)]


def system(**parameters):
    return Step("drop", "system", {key: tuple(value) for key, value in parameters.items()})


def user(**parameters):
    return Step("drop", "user", {key: tuple(value) for key, value in parameters.items()})


def texts(steps, root):
    locations = Locations(str(root), "/home/u")
    return {path: after.data.decode() for path, _, after in preview(steps, locations, TABLES, TEST_KINDS)}


# ------------------------------------------------------------------ golden


def test_system_drop_in_to_the_letter(tmp_path):
    root = prepare(tmp_path / "root")
    (text,) = texts(ENVIRONMENT_STEPS, root).values()
    lines = text.splitlines()
    assert all(line.startswith("#") for line in lines[:2])
    assert "rocm-patch rollback" in lines[1]
    assert lines[2:] == [
        """if [ "${HSA_OVERRIDE_GFX_VERSION-}" = '10.3.0' ]; then unset HSA_OVERRIDE_GFX_VERSION; fi""",
        "export MIOPEN_FIND_MODE='FAST'",
    ]


def test_user_drop_in_to_the_letter(tmp_path):
    steps = (user(unset=["HSA_OVERRIDE_GFX_VERSION=10.3.0", "MIOPEN_DEBUG_CONV_GEMM=0"], own=["10.1.2"], set=["MIOPEN_FIND_MODE=2"]),)
    ((path, text),) = texts(steps, prepare(tmp_path / "root")).items()
    assert path == "/home/u/.config/environment.d/90-rocm-patch.conf"
    assert text.splitlines()[2:] == [
        "# not HSA_OVERRIDE_GFX_VERSION=10.3.0",
        "HSA_OVERRIDE_GFX_VERSION=10.1.2",
        "# not MIOPEN_DEBUG_CONV_GEMM=0",
        "MIOPEN_DEBUG_CONV_GEMM=1",
        "MIOPEN_FIND_MODE=2",
    ]


# ------------------------------------------------------------------ real shells


@pytest.mark.parametrize("options", ["", "-e", "-u", "-eu"])
@pytest.mark.parametrize("shell", SHELLS)
def test_in_a_real_shell(shell, options, tmp_path):
    root = prepare(tmp_path / "root")
    do_apply(root, (*ENVIRONMENT_STEPS, system(unset=["MIOPEN_DEBUG_CONV_GEMM="])))

    def source(**given):
        argv = [shutil.which(shell), *(["sh"] if shell == "busybox" else []), *([options] if options else [])]
        script = f"before=$(set | wc -l); . {root}/{DROP_IN}; env; echo done"
        done = subprocess.run([*argv, "-c", script], env={"PATH": "/usr/bin:/bin", **given}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("done\n")
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    assert "HSA_OVERRIDE_GFX_VERSION" not in source()
    assert "HSA_OVERRIDE_GFX_VERSION" not in source(HSA_OVERRIDE_GFX_VERSION="10.3.0")
    assert source(HSA_OVERRIDE_GFX_VERSION="10.1.0")["HSA_OVERRIDE_GFX_VERSION"] == "10.1.0"
    assert source(HSA_OVERRIDE_GFX_VERSION="10.3.0 ")["HSA_OVERRIDE_GFX_VERSION"] == "10.3.0 "
    assert source()["MIOPEN_FIND_MODE"] == "FAST"
    assert source(MIOPEN_FIND_MODE="1")["MIOPEN_FIND_MODE"] == "FAST"
    assert "MIOPEN_DEBUG_CONV_GEMM" not in source(MIOPEN_DEBUG_CONV_GEMM="")
    assert source(MIOPEN_DEBUG_CONV_GEMM="0")["MIOPEN_DEBUG_CONV_GEMM"] == "0"
    # Nothing but the names that it is about comes out of it.
    assert set(source()) - {"PATH", "PWD", "SHLVL", "OLDPWD", "_", "LOGNAME", "HOME"} == {"MIOPEN_FIND_MODE"}


def test_a_login_shell_reads_it(tmp_path):
    """By Debian's own loop over profile.d."""
    root = prepare(tmp_path / "root")
    Path(f"{root}/etc/profile.d/amd.sh").write_text("export HSA_OVERRIDE_GFX_VERSION=10.3.0\n")
    do_apply(root, ENVIRONMENT_STEPS)
    script = f'for i in {root}/etc/profile.d/*.sh; do if [ -r "$i" ]; then . "$i"; fi; done; echo "${{HSA_OVERRIDE_GFX_VERSION-unset}}"'
    done = subprocess.run(["/bin/sh", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == "unset\n"


def test_verify_finds_a_drop_in_that_does_nothing():
    settings_ = {"HSA_OVERRIDE_GFX_VERSION": Setting(("10.3.0",))}
    good = text_of(settings_, "shell").encode()
    assert environment_check.source(good, settings_)
    for bad in (good.replace(b"then unset", b"then true"), good.replace(b"fi\n", b"\n"), good + b"echo noise >&2\n", good + b"exit 1\n"):
        with pytest.raises(Exception, match="drop-in"):
            environment_check.source(bad, settings_)


# ------------------------------------------------------------------ reading back

NAMES = st.sampled_from(["A", "B_2", "_c"])
VALUES = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'\"`\\$"), max_size=12)


@given(st.dictionaries(NAMES, st.tuples(st.lists(VALUES, unique=True, max_size=3), st.one_of(st.none(), VALUES)), max_size=3))
@settings(max_examples=300, deadline=None)
def test_system_text_reads_back(raw):
    rows = {name: Setting(tuple(sorted(harmful)), value) for name, (harmful, value) in raw.items() if harmful or value is not None}
    text = text_of(rows, "shell")
    assert parse(text.encode(), "shell") == rows
    assert text_of(parse(text.encode(), "shell"), "shell") == text


@given(st.dictionaries(NAMES, st.tuples(st.lists(VALUES, unique=True, min_size=1, max_size=3), VALUES), max_size=3), st.dictionaries(NAMES, VALUES))
@settings(max_examples=300, deadline=None)
def test_user_text_reads_back(taken, given_):
    rows = {name: Setting(tuple(sorted(harmful)), None, neutral) for name, (harmful, neutral) in taken.items()}
    rows |= {name: Setting((), value) for name, value in given_.items()}
    assert parse(text_of(rows, "conf").encode(), "conf") == rows


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_only_format_errors_leave_the_parser(data):
    for form in ("shell", "conf", "unit", "manager", "desktop", "command"):
        with contextlib.suppress(FormatError):
            parse(data, form)


# ------------------------------------------------------------------ what is refused

BAD = {
    "a name outside the tables": {"set": ["PATH=/tmp"]},
    "a name of another kind": {"set": ["amdgpu.noretry=0"]},
    "a value that may not be set": {"set": ["HSA_OVERRIDE_GFX_VERSION=9.0.0"]},
    "a value that matches only in part": {"set": ["HSA_OVERRIDE_GFX_VERSION=10.3.0\n"]},
    "two values": {"set": ["MIOPEN_FIND_MODE=2", "MIOPEN_FIND_MODE=FAST"]},
    "set and unset": {"set": ["MIOPEN_FIND_MODE=2"], "unset": ["MIOPEN_FIND_MODE=2"]},
    "a quote": {"unset": ["HSA_OVERRIDE_GFX_VERSION=' ]; then rm -rf /; fi; #"]},
    "a double quote": {"unset": ['HSA_OVERRIDE_GFX_VERSION="']},
    "a new line": {"unset": ["HSA_OVERRIDE_GFX_VERSION=a\nrm -rf /"]},
    "a control character": {"unset": ["HSA_OVERRIDE_GFX_VERSION=\x1b[2J"]},
    "too long": {"unset": ["HSA_OVERRIDE_GFX_VERSION=" + "9" * 257]},
    "no equals sign": {"unset": ["HSA_OVERRIDE_GFX_VERSION"]},
    "no name": {"unset": ["=10.3.0"]},
    "an odd name": {"unset": ["A B=1"]},
    "nothing": {},
    "an unknown parameter": {"path": ["/etc/shadow"]},
    "no version": {"unset": ["HSA_OVERRIDE_GFX_VERSION=10.3.0"], "own": ["10.1.0; rm"]},
}


@pytest.mark.parametrize("parameters", BAD.values(), ids=BAD)
@pytest.mark.parametrize("make", [system, user])
def test_refused(make, parameters, tmp_path):
    root = prepare(tmp_path / "root")
    with pytest.raises((RefusedError, FormatError)):
        texts((make(**parameters),), root)


def test_environment_d_refuses_what_it_cannot_take_away(tmp_path):
    root = prepare(tmp_path / "root")
    with pytest.raises(RefusedError, match=r"environment\.d") as refusal:
        texts((user(unset=["MIOPEN_FIND_MODE=1"]),), root)
    assert refusal.value.hint
    with pytest.raises(RefusedError, match="own version"):
        texts((user(unset=["HSA_OVERRIDE_GFX_VERSION=10.3.0"]),), root)


def test_merging(tmp_path):
    root = prepare(tmp_path / "root")
    do_apply(root, (system(set=["MIOPEN_FIND_MODE=2"]),))
    do_apply(root, (system(unset=["MIOPEN_FIND_MODE=2", "MIOPEN_FIND_MODE=1"]),))
    text = Path(f"{root}/{DROP_IN}").read_text()
    assert "export" not in text
    assert text.count("unset MIOPEN_FIND_MODE") == 2
    do_apply(root, (system(set=["MIOPEN_FIND_MODE=2"]),))
    text = Path(f"{root}/{DROP_IN}").read_text()
    assert "export MIOPEN_FIND_MODE='2'" in text
    assert text.count("unset MIOPEN_FIND_MODE") == 1


def test_the_shipped_tables_render(tmp_path):
    """Every neutral value and every simple settable value of the real table can be written and read back."""
    root = prepare(tmp_path / "root")
    rows = [row for row in knowledge.load().settings.values() if row.kind == "environment"]
    assert len(rows) > 5
    checked = 0
    for row in rows:
        if row.neutral:
            step = Step("drop-override", "user", {"unset": (f"{row.name}=odd",), "own": ("10.1.0",)})
            ((_, _, after),) = preview((step,), Locations(root, "/home/u"))
            assert row.name in parse(after.data, "conf")
            checked += 1
        for value in ("0", "1", "2", "FAST", "10.3.0"):
            if row.may_set and re.fullmatch(row.may_set, value):
                for scope in ("user", "system"):
                    step = Step("set-override", scope, {"set": (f"{row.name}={value}",)})
                    ((_, _, after),) = preview((step,), Locations(root, "/home/u"))
                    assert parse(after.data, "conf" if scope == "user" else "shell") == {row.name: Setting((), value)}
                    checked += 1
    assert checked > 5
