"""Shared by the tests of changes: a five-file plan, snapshots, a kill at the n-th primitive, and what a disk may hold after a power cut."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass, field
from types import MappingProxyType

import kernel_support

from rocm_patch.apply import apply, facts, recover, rollback
from rocm_patch.changes import KINDS, Locations, grown
from rocm_patch.changes.journal import is_transaction
from rocm_patch.changes.kind import Change, Kind, Work
from rocm_patch.model import SCHEMA, Condition, Plan, RemedyRow, SettingRow, Step
from rocm_patch.root import ABSENT, State

STATE = "var/lib/rocm-patch"
EXHAUSTIVE = "ROCM_PATCH_EXHAUSTIVE" in os.environ
"""Sweeps without sampling, long random runs: minutes to an hour, docs/reliability.md has the figures."""


# ------------------------------------------------------------------ tables and a plan


def remedy(name, kind, parameters):
    return RemedyRow(name, name, kind, "passive", "system", "", "", (), Condition(), parameters)


@dataclass(frozen=True)
class Tables:
    """A few rows, so that these tests do not hang on what the real tables say today."""

    remedies: object = field(
        default_factory=lambda: MappingProxyType(
            {
                "five": remedy("five", "five", ("variant",)),
                "drop": remedy("drop", "environment", ("unset", "own", "set")),
                "set": remedy("set", "environment", ("set",)),
                "wheel": remedy("wheel", "venv", ("gfx", "packages", "expect", "index", "python", "name")),
                "words": remedy("words", "manual", ()),
                "made": remedy("made", "made", ("word",)),
                "grow": remedy("grow", "grow", ()),
                "place": remedy("place", "environment", ("set", "unset", "place")),
                "member": remedy("member", "permissions", ("user", "group", "access")),
                "preload": remedy("preload", "preload", ("library", "sha256")),
                "prefix": remedy("prefix", "prefix", ("source", "name", "version", "sha256")),
                "neutralise": remedy("neutralise", "neutralise", ("file", "line", "text", "action")),
                "noretry": remedy("noretry", "modprobe", ("value",)),
                "iommu-passthrough": remedy("iommu-passthrough", "cmdline", ("stage",)),
                "amdgpu-kernel-word": remedy("amdgpu-kernel-word", "cmdline", ("word", "stage")),
            }
        )
    )
    settings: object = field(
        default_factory=lambda: MappingProxyType(
            {
                "HSA_OVERRIDE_GFX_VERSION": SettingRow("HSA_OVERRIDE_GFX_VERSION", "environment", "", r"1[01]\.[0-9]\.[0-9]", "{own}", ()),
                "MIOPEN_FIND_MODE": SettingRow("MIOPEN_FIND_MODE", "environment", "", "FAST|2", "", ()),
                "MIOPEN_DEBUG_CONV_GEMM": SettingRow("MIOPEN_DEBUG_CONV_GEMM", "environment", "", "0", "1", ()),
                "amdgpu.noretry": SettingRow("amdgpu.noretry", "module", "", "0", "", ()),
                "iommu": SettingRow("iommu", "kernel", "", "pt", "", ()),
            }
        )
    )
    wheels: tuple = ()


TABLES = Tables()

OLD_FOUR = b"four: as the user left it\n"
OLD_FIVE = b"five: to be deleted\n"
FIVE_PATHS = ("etc/new.d/one.conf", "etc/modprobe.d/two.conf", "etc/profile.d/three.sh", "etc/four.cfg", "etc/five.conf")


def _render(steps, look):
    variant = steps[-1].parameters.get("variant", ("a",))[0]
    own = {"uid": os.geteuid(), "gid": os.getegid()}
    four = look.now("/etc/four.cfg")
    return (
        Change("/etc/new.d/one.conf", State("file", 0o644, data=f"one {variant}\n".encode(), **own)),
        Change("/etc/modprobe.d/two.conf", State("file", 0o644, data=f"two {variant}\n".encode() * 300, **own)),
        Change("/etc/profile.d/three.sh", State("file", 0o755, data=f"three {variant}\n".encode(), **own)),
        Change("/etc/four.cfg", State("file", four.mode, four.uid, four.gid, f"four {variant}\n".encode(), "", four.attributes)),
        Change("/etc/five.conf", ABSENT),
    )


FIVE = Kind("five", ("system",), "reboot", lambda step, tables: None, _render, lambda *_: (), lambda *_: ("five: looked at",))


def _render_made(steps, look):
    return (Change("/etc/made.conf", State("file", 0o644, os.geteuid(), os.getegid(), f"{steps[-1].parameters['word'][0]}\n".encode())),)


def generate(work):
    """What a tool of the system would do: everything that is there, in one file. The menu is there before, the image is not."""
    state, kernels = work.tree.state(work.ground.at("/etc/made.conf")), work.tree.state("boot/kernels")
    old = work.tree.state("boot/menu.cfg")
    text = b"menu\n" + kernels.data + (state.data if state.kind == "file" else b"")
    return (
        Change("/boot/image", State("file", 0o600, os.geteuid(), os.getegid(), text * 50) if state.kind == "file" else ABSENT),
        Change("/boot/menu.cfg", State("file", old.mode, old.uid, old.gid, text)),
    )


def regenerate(root):
    """The same tool, run by somebody else."""
    ground = Locations(str(root)).ground("system")
    for change in generate(Work(ground, ground.tree(), TABLES, "", -1, print)):
        ground.tree().put(ground.at(change.path), change.after)


def _no_check(step, tables):
    pass


MADE = Kind("made", ("system",), "reboot", _no_check, _render_made, lambda _s, _c, work: generate(work), lambda *_: ("made",), asked_back=True)

GROWN_FILES = {"/opt/engine": {"a.py": b"a = 1\n" * 100, "inner/b.py": b"b = 2\n"}, "/opt/hook": {"entry.txt": b"engine:load\n"}}


def _render_grow(steps, look):
    """As the autoload kind does it: folders with a marker that are filled after they are there, and a file that names them."""
    found = []
    for path in GROWN_FILES:
        there = look.tree.state_kind(look.ground.at(path)) == "folder"
        found.append(Change(path, look.now(path)) if there else Change(path, grown.folder_state(0o755), grown=True))
    return (*found, Change("/etc/hook.conf", State("file", 0o644, os.geteuid(), os.getegid(), b"/opt/hook\n")))


def _fill(steps, changes, work):
    for change in changes:
        for name, data in GROWN_FILES[change.path].items() if change.grown else ():
            path = work.ground.at(f"{change.path}/{name}")
            work.tree.ensure_folder(os.path.dirname(path))
            work.tree.put(path, State("file", 0o644, os.geteuid(), os.getegid(), data))
    return ()


GROW = Kind("grow", ("system",), "reboot", lambda step, tables: None, _render_grow, _fill, lambda *_: ("grown",))
LIBRARY = b"bytes of a library\n"
UNTRIED = {"preload": {"prepare": None}}
"""Kinds that run programs of the root before they write: these roots have none, and what is swept here is the writing."""
TEST_KINDS = (*(dataclasses.replace(kind, **UNTRIED.get(kind.name, {})) for kind in KINDS), FIVE, GROW, MADE)
FIVE_STEPS = (Step("five", "system", {"variant": ("a",)}),)
ENVIRONMENT_STEPS = (
    Step("drop", "system", {"unset": ("HSA_OVERRIDE_GFX_VERSION=10.3.0",)}),
    Step("set", "system", {"set": ("MIOPEN_FIND_MODE=FAST",)}),
)
MADE_STEPS = (Step("made", "system", {"word": ("quiet",)}),)
GROW_STEPS = (Step("grow", "system", {}),)
PRELOAD_STEPS = (Step("preload", "system", {"library": ("/srv/libx.so",), "sha256": (hashlib.sha256(LIBRARY).hexdigest(),)}),)
STAGED = {"lib/liba.so.1": b"a" * 900}
STAGED_MANIFEST = (
    "".join(f"file\t0644\t{hashlib.sha256(data).hexdigest()}\t{path}\n" for path, data in STAGED.items()) + "link\t-\tliba.so.1\tlib/liba.so\n"
).encode()
PREFIX_MARK = hashlib.sha256(STAGED_MANIFEST).hexdigest()
PREFIX_STEPS = (Step("prefix", "system", {"source": ("/srv/stage",), "name": ("a",), "version": ("1.0",), "sha256": (PREFIX_MARK,)}),)
NEUTRALISE_STEPS = (Step("neutralise", "system", {"file": ("/etc/security/pam_env.conf",), "line": ("2",)}),)
CMDLINE_STEPS = (Step("iommu-passthrough", "system", {"stage": ("direct",)}),)
TRIAL_STEPS = (Step("iommu-passthrough", "system", {"stage": ("trial",)}),)
MODPROBE_STEPS = (Step("noretry", "system", {"value": ("0",)}),)
PLACES_STEPS = (
    Step("place", "system", {"set": ("MIOPEN_FIND_MODE=FAST",), "place": ("service:sshd",)}),
    Step("place", "system", {"set": ("MIOPEN_FIND_MODE=FAST",), "place": ("all-sessions",)}),
    Step("place", "system", {"set": ("MIOPEN_FIND_MODE=FAST",), "place": ("all-services",)}),
)
PERMISSIONS_STEPS = (
    Step("member", "system", {"user": ("alice",), "group": ("render",)}),
    Step("member", "system", {"group": ("render",), "access": ("seat",)}),
)
CASES = {
    "places": PLACES_STEPS, "permissions": PERMISSIONS_STEPS,
    "five": FIVE_STEPS, "environment": ENVIRONMENT_STEPS, "generated": MADE_STEPS, "grown": GROW_STEPS,
    "preload": PRELOAD_STEPS, "prefix": PREFIX_STEPS, "neutralise": NEUTRALISE_STEPS,
    "cmdline": CMDLINE_STEPS, "trial": TRIAL_STEPS, "modprobe": MODPROBE_STEPS,
}  # fmt: skip
"""Every kind of change that system scope has, and three that only test the engine; the sweeps run over all of them."""
OWN_CASES = ("five", "generated", "grown")


def needs_of(case):
    """What the receipt of a case says is needed."""
    by_name = {kind.name: kind.needs for kind in TEST_KINDS}
    needs = {by_name[TABLES.remedies[step.remedy].kind] for step in CASES[case]}
    return "reboot" if "reboot" in needs else "login" if "login" in needs else ""


BOOT_MENU = b"""load_env
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="0"
fi
menuentry 'A system' --class os $menuentry_id_option 'simple' {
\tlinux\t/vmlinuz root=/dev/vda1 ro quiet
\tinitrd\t/initrd.img
}
source $prefix/custom.cfg
"""
BOOT_BLOCK = b"# GRUB Environment Block\n".ljust(1024, b"#")


def prepare_boot(root):
    """As much of GRUB and systemd as the kind cmdline looks at. No generator: there is no system here that it could run in."""
    for folder in ("boot/grub", "etc/default/grub.d", "etc/systemd/system", "usr/lib/systemd"):
        os.makedirs(f"{root}/{folder}")
    for name, data in (("boot/grub/grub.cfg", BOOT_MENU), ("boot/grub/grubenv", BOOT_BLOCK), ("usr/lib/systemd/systemd", b"")):
        with open(f"{root}/{name}", "wb") as file:
            file.write(data)


def prepare_kernel(root):
    """A kernel whose driver has one parameter; no initramfs, since nothing here could make one."""
    folder = f"{root}/lib/modules/6.12.0"
    os.makedirs(folder)
    files = {"modules.dep": b"amdgpu.ko:\n", "amdgpu.ko": kernel_support.module({"noretry": kernel_support.TEXTS_612["noretry"]})}
    for name, data in files.items():
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)


def prepare(root):
    """A root as small as these plans need, with one file of odd mode and one link that must survive."""
    for folder in ("boot", "etc/modprobe.d", "etc/profile.d", "etc/security", "srv", "var"):
        os.makedirs(f"{root}/{folder}")
    for name, data in {"libx.so": LIBRARY, "stage/manifest": STAGED_MANIFEST, **{f"stage/{name}": data for name, data in STAGED.items()}}.items():
        os.makedirs(os.path.dirname(f"{root}/srv/{name}"), exist_ok=True)
        with open(f"{root}/srv/{name}", "wb") as file:
            file.write(data)
    with open(f"{root}/boot/menu.cfg", "wb") as file:
        file.write(b"menu\n")
    for name, data, mode in (("four.cfg", OLD_FOUR, 0o640), ("five.conf", OLD_FIVE, 0o604), ("profile.d/other.sh", b"export A=1\n", 0o644),
                             ("security/pam_env.conf", b"# kept\nHSA_XNACK DEFAULT=1\nlast", 0o644)):  # fmt: skip
        with open(f"{root}/etc/{name}", "wb") as file:
            file.write(data)
        os.chmod(f"{root}/etc/{name}", mode)
    os.symlink("four.cfg", f"{root}/etc/link")
    prepare_boot(root)
    prepare_kernel(root)
    os.makedirs(f"{root}/usr/lib/systemd/system", exist_ok=True)
    for name, data, mode in (
        ("etc/group", b"root:x:0:\nrender:x:109:bo\nusers:x:100:alice,bo\n", 0o644),
        ("etc/gshadow", b"root:*::\nrender:!::bo\nusers:*::alice,bo\n", 0o640),
        ("etc/passwd", b"alice:x:1000:1000::/home/alice:/bin/sh\n", 0o644),
        ("usr/lib/systemd/system/sshd.service", b"[Service]\nExecStart=/bin/true\n", 0o644),
    ):
        with open(f"{root}/{name}", "wb") as file:
            file.write(data)
        os.chmod(f"{root}/{name}", mode)
    return str(root)


def plan_for(steps, locations):
    return Plan(SCHEMA, tuple(steps), facts(steps, locations, TABLES, TEST_KINDS))


def do_apply(root, steps, observe=None, plan=None):
    locations = Locations(str(root), observe=observe)
    return apply(plan or plan_for(steps, locations), locations, tables=TABLES, kinds=TEST_KINDS, say=lambda _: None)


def do_rollback(root, observe=None, everything=True):
    return rollback(Locations(str(root), observe=observe), everything=everything, tables=TABLES, kinds=TEST_KINDS)


def do_recover(root, observe=None):
    return recover(Locations(str(root), observe=observe), tables=TABLES, kinds=TEST_KINDS)


# ------------------------------------------------------------------ snapshots


def snapshot(root, without=()):
    """Type, mode, owner, content, link target and attributes of everything in a tree."""
    root, found = str(root), {}
    for at, folders, files in os.walk(root):
        for name in [*folders, *files, *([] if at != root else ["."])]:
            path = os.path.join(at, name)
            short = os.path.relpath(path, root)
            if any(short == skip or short.startswith(f"{skip}/") for skip in without):
                continue
            found[short] = describe(path)
    return found


def describe(path):
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return ("link", mode, status.st_uid, status.st_gid, os.readlink(path), ())
    if stat.S_ISDIR(status.st_mode):
        return ("folder", mode, status.st_uid, status.st_gid, "", ())
    with open(path, "rb") as file:
        data = file.read()
    if os.path.basename(path) == grown.MARKER and is_transaction(data.decode("ascii", "replace").strip()):
        data = b"the name of a transaction"  # another one in each run
    attributes = tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
    return ("file", mode, status.st_uid, status.st_gid, data, attributes)


def managed(root):
    """Everything but the journal: what a program that knows nothing of us sees."""
    return snapshot(root, without=(STATE, "var/lib"))


def clone(source, target):
    if os.path.lexists(target):
        shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True)
    for at, folders, files in os.walk(source):
        for name in (*folders, *files):
            path = os.path.join(at, name)
            there = os.path.join(target, os.path.relpath(path, source))
            status = os.lstat(path)
            os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
    return str(target)


# ------------------------------------------------------------------ the judge


@dataclass
class Truth:
    """What is right: the tree before, the managed files after."""

    before: dict
    after: dict

    @classmethod
    def of(cls, steps, scratch):
        root = prepare(f"{scratch}/truth")
        before = snapshot(root)
        do_apply(root, steps)
        return cls(before, managed(root))

    def judge(self, root, back=False):
        """None if the tree is exactly before or after; otherwise what is wrong. `back`: roll the after back as well."""
        now = snapshot(root)
        if now == self.before:
            return None
        if managed(root) != self.after:
            return f"neither before nor after: {difference(self.before, now)}"
        if os.path.exists(f"{root}/{STATE}/plan"):
            return "the plan file is still there"
        if back:
            do_rollback(root)
            if snapshot(root) != self.before:
                return f"after, but it does not roll back: {difference(self.before, snapshot(root))}"
        return None

    def torn(self, root):
        """What a boot before any recovery would see: files neither old nor new, or names that a reader of drop-ins takes."""
        wrong = []
        base = {path: row for path, row in self.before.items() if not path.startswith("var")}
        for path in {*base, *self.after}:
            now = describe(f"{root}/{path}") if os.path.lexists(f"{root}/{path}") else None
            if now not in (base.get(path), self.after.get(path)) and not path.startswith("var"):
                wrong.append(f"{path} is torn: {now}")
        if os.path.exists(f"{root}/etc/hook.conf") and not os.path.isdir(f"{root}/opt/hook"):
            wrong.append("etc/hook.conf names a folder that is not there")  # as an entry point without its module breaks a program
        for at, _, files in os.walk(f"{root}/etc"):
            for name in files:
                short = os.path.relpath(os.path.join(at, name), root)
                if short not in base and short not in self.after and not name.startswith("."):
                    wrong.append(f"{short} would be read")
        return wrong


def difference(one, other):
    return {path: (one.get(path), other.get(path)) for path in sorted({*one, *other}) if one.get(path) != other.get(path)}


# ------------------------------------------------------------------ dying at a primitive


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


@dataclass
class DieAt:
    """Observer that stops the process before its n-th primitive, and every later one."""

    at: int
    seen: int = 0

    def __call__(self, operation):
        self.seen += 1
        if self.seen >= self.at:
            raise Killed


@dataclass
class FailAt:
    """Observer that lets the n-th primitive fail, once or from then on."""

    at: int
    error: int
    for_ever: bool = False
    seen: int = 0
    hit: bool = False

    def __call__(self, operation):
        self.seen += 1
        if self.seen == self.at or (self.for_ever and self.seen > self.at):
            self.hit = True
            raise OSError(self.error, os.strerror(self.error), operation.path)


def count_operations(action):
    """How many primitives an action makes; `action` gets an observer."""
    seen = []
    action(seen.append)
    return len(seen)
