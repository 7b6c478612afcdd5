"""Root's own copy: built the same everywhere, checked before use, given ids only, and trusting nothing that it is given."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from changes_support import STATE, prepare, snapshot

import rocm_patch
from rocm_patch import apply as door
from rocm_patch import codec, knowledge
from rocm_patch.changes import Locations, facts, privileged
from rocm_patch.errors import EXIT_REFUSED, RefusedError
from rocm_patch.model import SCHEMA, Plan, Receipt, Step

SOURCE = str(Path(rocm_patch.__file__).parents[1])
PYTHON = privileged.PYTHON
STEPS = (
    Step("drop-override", "system", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",)}),
    Step("miopen-find-fast", "system", {"set": ("MIOPEN_FIND_MODE=FAST",)}),
)
DROP_IN = "etc/profile.d/zz-rocm-patch.sh"


def system_python_is_new_enough():
    try:
        done = subprocess.run([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"], check=False)
    except OSError:
        return False
    return done.returncode == 0


needs_python = pytest.mark.skipif(not system_python_is_new_enough(), reason=f"{PYTHON} is missing or older than 3.10")


@pytest.fixture
def zipapp(tmp_path):
    path = tmp_path / "root.pyz"
    path.write_bytes(privileged.build())
    return str(path)


def ask(zipapp, *words, document="", **more):
    """Root's side as this user."""
    return subprocess.run([PYTHON, "-I", zipapp, *words], input=document, capture_output=True, text=True, check=False, **more)


def ask_here(zipapp, *words, document=""):
    """The same with the check of the file's owner left out: these tests keep it in a folder of the test's."""
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from rocm_patch.changes import privileged; privileged.own_weak_point = lambda: None\n"
        "from rocm_patch.apply import privileged_main; sys.exit(privileged_main())"
    )
    return subprocess.run([PYTHON, "-I", "-c", script, zipapp, *words], input=document, capture_output=True, text=True, check=False)


def plan_text(root, steps=STEPS):
    return codec.dumps(Plan(SCHEMA, steps, facts(steps, Locations(root))))


# ------------------------------------------------------------------ the file


def test_built_twice_is_the_same(monkeypatch):
    first = privileged.build()
    monkeypatch.setattr("time.time", lambda: 0.0)
    old = os.umask(0o077)
    try:
        assert privileged.build() == first
    finally:
        os.umask(old)
    with zipfile.ZipFile(__import__("io").BytesIO(first)) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {info.date_time for info in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert not [name for name in names if name.endswith(".toml")]
        assert json.loads(archive.read("rocm_patch/knowledge/tables.json"))["settings"]


@needs_python
def test_another_python_builds_the_same():
    done = subprocess.run([PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True, check=True)
    if done.stdout.strip() != "True":
        pytest.skip(f"{PYTHON} has no tomllib, so it cannot bake the tables")
    script = "import sys; sys.path.insert(0, sys.argv[1]); from rocm_patch.changes import privileged as p; print(p.sha256(p.build()))"
    done = subprocess.run([PYTHON, "-I", "-c", script, SOURCE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == privileged.sha256(privileged.build())


@needs_python
def test_root_imports_the_standard_library_and_the_privileged_set_only(zipapp, tmp_path):
    root = prepare(tmp_path / "root")
    script = """
import io, json, sys
before = set(sys.modules)
zipapp, root, plan = sys.argv[1:]
sys.path.insert(0, zipapp)
from rocm_patch.changes import privileged
privileged.own_weak_point = lambda: None
from rocm_patch import apply
real = sys.stdout
for verb in ("apply", "status", "recover"):
    sys.argv = ["x", verb, "--root", root]
    sys.stdin = io.TextIOWrapper(io.BytesIO(plan.encode()))
    sys.stdout = io.StringIO()
    assert apply.privileged_main() == 0, sys.stdout.getvalue()
sys.stdout = real
loaded = [[name, getattr(module, "__file__", None)] for name, module in sys.modules.items() if name not in before]
print(json.dumps([loaded, sorted(sys.stdlib_module_names)]))
"""
    done = subprocess.run([PYTHON, "-I", "-S", "-c", script, zipapp, root, plan_text(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, (loaded, standard) = set(), json.loads(done.stdout)
    for name, path in loaded:
        top = name.split(".")[0]
        if top == "rocm_patch":
            assert path.startswith(zipapp), name
            ours.add(os.path.relpath(path, f"{zipapp}/rocm_patch"))
        else:
            assert top in standard, name
    assert ours == set(privileged.MODULES)


# ------------------------------------------------------------------ the check


def test_absent_altered_and_weak(tmp_path):
    cache, installed = tmp_path / "cache", tmp_path / "libexec" / "rocm-patch-root.pyz"
    with pytest.raises(RefusedError, match="not there") as refusal:
        privileged.check(str(cache), str(installed))
    assert refusal.value.exit_code == EXIT_REFUSED
    built = cache / "rocm-patch" / "rocm-patch-root.pyz"
    assert refusal.value.hint == f"sudo install -D -o root -g root -m 0755 {built} {installed}"
    assert built.read_bytes() == privileged.build()
    installed.parent.mkdir()
    shutil.copy(built, installed)
    if os.geteuid() == 0:
        with pytest.raises(RefusedError, match="not safe"):  # the test's folder lies in one that all may write
            privileged.check(str(cache), str(installed))


@pytest.mark.root
def test_weak_points():
    if os.geteuid() != 0:
        pytest.skip("needs root to own the files")
    base = Path(tempfile.mkdtemp(prefix="rocm-patch-test-", dir="/opt"))
    try:
        base.chmod(0o755)
        (base / "libexec").mkdir(mode=0o755)
        installed, cache = base / "libexec" / "root.pyz", base / "cache"
        installed.write_bytes(privileged.build())
        installed.chmod(0o755)
        assert privileged.check(str(cache), str(installed)) == str(installed)
        for path, mode, good in ((installed, 0o775, 0o755), (installed.parent, 0o777, 0o755), (base, 0o1777, 0o755)):
            path.chmod(mode)
            with pytest.raises(RefusedError, match="can be written by its group or by all") as refusal:
                privileged.check(str(cache), str(installed))
            assert str(path) in refusal.value.hint
            path.chmod(good)
        os.chown(installed.parent, 12345, 0)
        with pytest.raises(RefusedError, match="belongs to user 12345"):
            privileged.check(str(cache), str(installed))
        os.chown(installed.parent, 0, 0)
        installed.write_bytes(privileged.build().replace(b"refuse_sudo", b"refuse_Sudo"))
        with pytest.raises(RefusedError, match="changed"):
            privileged.check(str(cache), str(installed))
        link = base / "link.pyz"
        link.symlink_to(installed)
        with pytest.raises(RefusedError, match="is a link"):
            privileged.check(str(cache), str(link))
    finally:
        shutil.rmtree(base)


# ------------------------------------------------------------------ root's side, asked directly


@needs_python
def test_apply_status_rollback(zipapp, tmp_path):
    root = prepare(tmp_path / "root")
    before = snapshot(root)
    done = ask_here(zipapp, "apply", "--root", root, document=plan_text(root))
    assert (done.returncode, done.stderr) == (0, "")
    receipt = codec.loads(Receipt, done.stdout, "answer")
    assert receipt.outcome == "applied"
    assert "10.3.0" in Path(f"{root}/{DROP_IN}").read_text()
    status = json.loads(ask_here(zipapp, "status", "--root", root).stdout)
    assert [record["transaction"] for record in status["transactions"]] == [receipt.transaction]
    assert json.loads(ask_here(zipapp, "recover", "--root", root).stdout)["outcome"] == "nothing to undo"
    done = ask_here(zipapp, "rollback", "--root", root, "--transaction", receipt.transaction)
    assert json.loads(done.stdout)["outcome"] == "rolled back"
    assert snapshot(root) == before


HOSTILE = {
    "not JSON": ("{", 3),
    "not a plan": ("[]", 3),
    "an unknown key": ('{"schema": 1, "steps": [], "facts": {}, "run": "rm -rf /"}', 3),
    "a user step": ('{"schema": 1, "steps": [{"remedy": "drop-override", "scope": "user", "parameters": {}}], "facts": {}}', EXIT_REFUSED),
    "a user fact": ('{"schema": 1, "steps": [], "facts": {"user:x": "y"}}', EXIT_REFUSED),
    "no steps": ('{"schema": 1, "steps": [], "facts": {}}', EXIT_REFUSED),
    "another schema": ('{"schema": 2, "steps": [{"remedy": "drop-override", "scope": "system", "parameters": {}}], "facts": {}}', 3),
    "an unknown remedy": ('{"schema": 1, "steps": [{"remedy": "../../x", "scope": "system", "parameters": {}}], "facts": {}}', EXIT_REFUSED),
    "a venv for root": ('{"schema": 1, "steps": [{"remedy": "native-wheel", "scope": "system", "parameters": {}}], "facts": {}}', EXIT_REFUSED),
    "half a character": (
        '{"schema": 1, "steps": [{"remedy": "drop-override", "scope": "system", "parameters": {"unset": ["\\ud800=1"]}}], "facts": {}}',
        3,
    ),
    "too long": ('{"schema": 1, "steps": [], "facts": {}}' + " " * (1 << 20), 3),
    "too deep": ("[" * 100000, 3),
}


@needs_python
@pytest.mark.parametrize(("document", "code"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents(document, code, zipapp, tmp_path):
    root = prepare(tmp_path / "root")
    before = snapshot(root)
    done = ask_here(zipapp, "apply", "--root", root, document=document)
    assert done.returncode == code
    assert set(json.loads(done.stdout)) == {"error", "hint"}
    assert "Traceback" not in done.stderr
    assert snapshot(root) == before


@needs_python
@pytest.mark.parametrize(
    "words",
    ["", "apply", "apply --root etc", "dance --root /", "rollback --root /x --transaction ../x", "rollback --root /x y", "apply --root /x --unknown"],
)
def test_hostile_words(words, zipapp):
    done = ask_here(zipapp, *words.split())
    assert done.returncode == 2
    assert "error" in json.loads(done.stdout)
    assert "Traceback" not in done.stderr


def test_a_defect_on_roots_side_is_told_in_json(monkeypatch, capsys):
    """What nobody foresaw: the caller reads JSON and got a traceback and nothing else."""

    def broken(argv):
        raise ValueError("\ud800")

    monkeypatch.setattr(door, "_cut_off", lambda: None)
    monkeypatch.setattr(door, "_serve", broken)
    assert door.privileged_main() == 1
    answer = json.loads(capsys.readouterr().out)
    assert "ValueError" in answer["error"]
    assert "status" in answer["hint"]


@needs_python
@pytest.mark.root
def test_root_does_not_run_a_copy_that_others_can_write(zipapp, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root refuses")
    root = prepare(tmp_path / "root")
    done = ask(zipapp, "apply", "--root", root, document=plan_text(root))
    assert done.returncode == EXIT_REFUSED
    assert "can change" in json.loads(done.stdout)["error"]


# ------------------------------------------------------------------ a real user, a real sudo


USER = f"rocmpatchtest{os.getpid()}"
AS_USER = """
import json, sys
sys.path.insert(0, sys.argv[1])
verb, root, home, zipapp = sys.argv[2:6]
from rocm_patch import codec
from rocm_patch.apply import apply, rollback, recover, status, facts
from rocm_patch.changes import Locations, elevate
from rocm_patch.errors import RocmPatchError
from rocm_patch.model import Plan, Step
locations = Locations(root, "", "", "", home + "/.cache")
steps = codec.decode(tuple[Step, ...], json.loads(sys.argv[6]), "steps")
asked = []
real = elevate.ask_root
elevate.ask_root = lambda *a, **k: (asked.append(a[3]), real(*a, **k))[1]
try:
    if verb == "apply":
        found = apply(Plan(1, steps, facts(steps, locations)), locations, zipapp=zipapp)
    elif verb == "rollback":
        found = rollback(locations, zipapp=zipapp)
    elif verb == "recover":
        found = recover(locations, zipapp=zipapp)
    else:
        found = status(locations)
    print(json.dumps({"answer": codec.encode(found), "asked": asked}))
except RocmPatchError as error:
    print(json.dumps({"error": error.what, "hint": error.hint, "code": error.exit_code, "asked": asked}))
"""


def make_user(home):
    for _ in range(20):
        done = subprocess.run(["/usr/sbin/useradd", "-M", "-N", "-d", str(home), "-s", "/bin/sh", USER], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.3)  # somebody else holds the lock of the password file
    pytest.skip(f"no user can be made here: {done.stderr.strip()}")


@pytest.fixture
def site():
    """A root-owned tree, an unprivileged user with a home and a sudo rule, and a place for root's copy."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a user and a sudo rule")
    for tool in ("/usr/bin/sudo", "/usr/sbin/useradd", "/usr/sbin/userdel"):
        if not os.access(tool, os.X_OK):
            pytest.skip(f"{tool} is not there")
    if not os.path.isdir("/etc/sudoers.d"):
        pytest.skip("there is no /etc/sudoers.d")
    base = Path(tempfile.mkdtemp(prefix="rocm-patch-test-", dir="/opt"))
    base.chmod(0o755)
    rule = Path(f"/etc/sudoers.d/{USER}")
    try:
        make_user(base / "home")
        entry = __import__("pwd").getpwnam(USER)
        (base / "home").mkdir(mode=0o755)
        os.chown(base / "home", entry.pw_uid, entry.pw_gid)
        shutil.copytree(Path(rocm_patch.__file__).parent, base / "home" / "src" / "rocm_patch", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", str(base / "home" / "src")], check=True)
        (base / "machine").mkdir(mode=0o755)
        prepare(base / "machine" / "root")
        zipapp = base / "libexec" / "rocm-patch-root.pyz"
        keep = f'Defaults!{PYTHON} env_keep += "PYTHONPATH HOME XDG_STATE_HOME TMPDIR"'
        rule.write_text(f"{USER} ALL=(root) NOPASSWD: {PYTHON} -I {zipapp} *\n{keep}\n")
        rule.chmod(0o440)
        check = subprocess.run(["/usr/sbin/visudo", "-c", "-f", str(rule)], capture_output=True, check=False)
        if check.returncode != 0:
            pytest.skip(f"sudo does not take the rule: {check.stderr!r}")
        yield base, entry, zipapp
    finally:
        rule.unlink(missing_ok=True)
        subprocess.run(["/usr/sbin/userdel", USER], check=False, capture_output=True)
        shutil.rmtree(base)


def users_command(site, verb, steps):
    base, _, zipapp = site
    places = (base / "home" / "src", verb, base / "machine" / "root", base / "home", zipapp)
    return [PYTHON, "-B", "-c", AS_USER, *map(str, places), json.dumps(codec.encode(steps))]


def as_user(site, verb, steps=STEPS, **environment):
    base, entry, _ = site
    done = subprocess.run(
        users_command(site, verb, steps),
        user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd=str(base / "home"), capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(base / "home"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_python
@pytest.mark.root
def test_a_real_user_and_sudo(site):
    base, entry, zipapp = site
    root = base / "machine" / "root"
    before = snapshot(root)

    # Absent: refused before anything is done, and the command that helps is shown.
    said = as_user(site, "apply")
    assert said["code"] == EXIT_REFUSED
    assert "not there" in said["error"]
    built = base / "home" / ".cache" / "rocm-patch" / "rocm-patch-root.pyz"
    assert said["hint"] == f"sudo install -D -o root -g root -m 0755 {built} {zipapp}"
    assert said["asked"] == []
    assert snapshot(root) == before
    subprocess.run(said["hint"].split()[1:], check=True)

    # Installed: applied by root, from ids alone.
    said = as_user(site, "apply")
    (receipt,) = said["answer"]
    assert receipt["outcome"] == "applied"
    assert receipt["needs"] == "login"
    status = os.stat(root / DROP_IN)
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o644)
    assert os.stat(root / STATE).st_mode & 0o7777 == 0o700

    # Satisfied: nobody is asked for rights.
    said = as_user(site, "apply")
    assert [item["outcome"] for item in said["answer"]] == ["already there"]
    assert said["asked"] == []
    (scope,) = as_user(site, "status")["answer"]
    assert (scope["readable"], [item["state"] for item in scope["files"]]) == (False, ["as left"])
    assert as_user(site, "recover")["answer"] == []

    # A second plan does not lose the first, though the user cannot read the journal.
    said = as_user(site, "apply", (Step("drop-override", "system", {"unset": ("HSA_OVERRIDE_GFX_VERSION=9.0.0",)}),))
    assert said["answer"][0]["outcome"] == "applied"
    assert "10.3.0" in (root / DROP_IN).read_text()
    assert "9.0.0" in (root / DROP_IN).read_text()

    # Altered: refused.
    good = zipapp.read_bytes()
    zipapp.write_bytes(good + b"\n")
    said = as_user(site, "rollback")
    assert (said["code"], said["hint"]) == (EXIT_REFUSED, f"sudo install -D -o root -g root -m 0755 {built} {zipapp}")
    zipapp.write_bytes(good)

    for _ in range(2):
        assert as_user(site, "rollback")["answer"][0]["outcome"] == "rolled back"
    assert as_user(site, "rollback")["answer"][0]["outcome"] == "nothing to undo"
    assert snapshot(root) == before

    # A foreign edit is refused on root's side as well, and the words come through.
    as_user(site, "apply")
    with open(root / DROP_IN, "a") as file:
        file.write("# mine\n")
    said = as_user(site, "rollback")
    assert said["answer"][0]["outcome"] == "partly rolled back"
    assert (root / DROP_IN).read_text().endswith("# mine\n")
    assert entry.pw_uid != 0


@needs_python
@pytest.mark.root
def test_sudo_itself_is_refused_from_code_that_a_user_can_write(site):
    base, entry, _ = site
    before = snapshot(base / "machine" / "root")
    done = subprocess.run(
        users_command(site, "apply", STEPS),
        env={"PATH": "/usr/bin:/bin", "HOME": str(base / "home"), "SUDO_UID": str(entry.pw_uid)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["code"] == EXIT_REFUSED
    assert "a user can change" in said["error"]
    assert "without sudo" in said["hint"]
    assert snapshot(base / "machine" / "root") == before


@needs_python
@pytest.mark.root
def test_what_root_opens_with_a_hostile_environment(site, tmp_path):
    """Not one open below any place that the caller named, and nothing of theirs is run."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    base, _, zipapp = site
    zipapp.parent.mkdir()
    zipapp.write_bytes(privileged.build())
    zipapp.chmod(0o755)
    root = base / "machine" / "root"
    hostile = base / "hostile"
    for name in ("json.py", "re.py", "rocm_patch/__init__.py", "sitecustomize.py", "usercustomize.py", "sh", "python3", "tables.json"):
        path = hostile / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("#!/bin/sh\ntouch /opt/rocm-patch-was-fooled\n" if "." not in name else "raise SystemExit('fooled')\n")
        path.chmod(0o777)
    names = (
        "HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PATH", "TMPDIR", "TEMP", "XDG_STATE_HOME", "XDG_CONFIG_HOME",
        "XDG_DATA_HOME", "XDG_CACHE_HOME", "ENV", "BASH_ENV", "PYTHONPYCACHEPREFIX",
    )  # fmt: skip
    log = tmp_path / "log"
    for verb, document in (("apply", plan_text(str(root))), ("status", ""), ("recover", "")):
        done = subprocess.run(
            [strace, "-f", "-qq", "-o", str(log), "-e", "trace=%file,chdir", PYTHON, "-I", str(zipapp), verb, "--root", str(root)],
            input=document, capture_output=True, text=True, check=False, cwd=hostile, env={name: str(hostile) for name in names},
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)
        lines = log.read_text(errors="replace").splitlines()
        assert len(lines) > 100
        assert [line for line in lines if "execve" not in line and "hostile" in line] == []
        shells = re.findall(r'execve\("([^"]+)"', "\n".join(lines))
        assert set(shells) <= {PYTHON, "/bin/sh"}
        assert len(shells) > (1 if verb == "apply" else 0)
    assert not os.path.exists("/opt/rocm-patch-was-fooled")


def test_the_tables_that_are_baked_are_the_tables(tmp_path):
    tables = knowledge.build(json.loads(knowledge.baked()))
    assert tables.settings == knowledge.load().settings
    assert tables.remedies == knowledge.load().remedies
