"""One drop-in for the driver's options: checked against the kernel that is there, merged, read by the real modprobe, taken back exactly."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from changes_support import managed, snapshot
from kernel_support import DEBIAN_MARKS, TEXTS_61, TEXTS_63, driver, image, kernel, modinfo, put

from rocm_patch import knowledge
from rocm_patch.apply import apply, facts, rollback
from rocm_patch.changes import Locations, engine, modprobe, modprobe_config
from rocm_patch.changes.modprobe_config import Option
from rocm_patch.errors import EXIT_REFUSED, EXIT_USAGE, FormatError, RefusedError, RocmPatchError
from rocm_patch.knowledge.conditions import Context, in_scope, recommended, status
from rocm_patch.machine import recorded, settings, user
from rocm_patch.model import SCHEMA, Known, Plan, Step, Unknown
from rocm_patch.root import Root

SIX = {
    "mtype-local": ("mtype_local", "1"),
    "noretry": ("noretry", "0"),
    "vm-fragment-size": ("vm_fragment_size", "9"),
    "gpu-recovery": ("gpu_recovery", "1"),
    "lockup-timeout": ("lockup_timeout", "20000"),
    "cwsr-disable": ("cwsr_enable", "0"),
}
DROP_IN = "etc/modprobe.d/zz-rocm-patch.conf"
DEBIAN = "6.12.117-test"
OURS = Option("noretry", "0", modprobe.PATH, 3)


def step(id_, value=""):
    return Step(id_, "system", {"value": (value or SIX[id_][1],)})


def do(root, *steps):
    where = Locations(str(root))
    return apply(Plan(SCHEMA, steps, facts(steps, where)), where, say=lambda _: None)[0]


def back(root):
    return rollback(Locations(str(root)), everything=True)


def text(root):
    return (root / DROP_IN).read_text()


def refused(action, *words):
    with pytest.raises(RefusedError) as caught:
        action()
    assert caught.value.exit_code == EXIT_REFUSED
    said = f"{caught.value.what} {caught.value.hint}"
    for word in words:
        assert word in said, said


@pytest.fixture
def root(tmp_path):
    """A small system of Debian's layout whose initramfs does not hold the driver."""
    there = tmp_path / "root"
    kernel(there, DEBIAN)
    put(there, f"boot/initrd.img-{DEBIAN}", image(DEBIAN_MARKS))
    put(there, "etc/modprobe.d/blacklist.conf", "blacklist nouveau\n")
    (there / "var").mkdir()
    return there


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("id_", sorted(SIX))
def test_each_option_there_and_back(root, id_):
    before = snapshot(root)
    receipt = do(root, step(id_))
    name, value = SIX[id_]
    assert text(root).splitlines()[-1] == f"options amdgpu {name}={value}"
    assert (receipt.changed, receipt.needs) == (("/" + DROP_IN,), "reboot")
    assert any(f"linux {DEBIAN} (newest here)" in line for line in receipt.verified)
    assert any("holds no amdgpu" in line for line in receipt.verified)
    back(root)
    assert snapshot(root) == before


def test_several_merge_in_one_file_of_stable_order(root):
    before = snapshot(root)
    do(root, step("noretry"), step("cwsr-disable"))
    do(root, step("mtype-local"))
    lines = [line for line in text(root).splitlines() if line.startswith("options")]
    assert lines == ["options amdgpu cwsr_enable=0", "options amdgpu mtype_local=1", "options amdgpu noretry=0"]
    one = text(root)
    rollback(Locations(str(root)))
    assert "mtype_local" not in text(root)
    do(root, step("mtype-local"))
    assert text(root) == one
    back(root)
    assert snapshot(root) == before


def test_twice_is_once(root):
    do(root, step("noretry"))
    after = snapshot(root)
    assert do(root, step("noretry")).outcome == "already there"
    assert snapshot(root) == after


def test_a_new_value_takes_the_place_of_the_old(root):
    do(root, step("noretry"))
    do(root, step("noretry", "1"))
    assert "noretry=0" not in text(root)
    rollback(Locations(str(root)))
    assert text(root).endswith("options amdgpu noretry=0\n")


def test_without_a_value_the_word_on_the_street(root):
    do(root, *(Step(id_, "system", {}) for id_ in SIX if id_ != "lockup-timeout"))
    assert [line.split()[-1] for line in text(root).splitlines() if line.startswith("options")] == [
        "cwsr_enable=0", "gpu_recovery=1", "mtype_local=1", "noretry=0", "vm_fragment_size=9",
    ]  # fmt: skip
    refused(lambda: do(root, Step("lockup-timeout", "system", {})), "which value", "--set value=")


def test_what_a_number_means_is_what_this_kernel_says(root, tmp_path):
    do(root, step("mtype-local", "2"))
    assert '# mtype_local=2 is "MTYPE_CC" in the words of linux 6.12.117-test\noptions amdgpu mtype_local=2\n' in text(root)
    old = tmp_path / "old"
    kernel(old, "6.3.1", TEXTS_63)
    do(old, step("mtype-local", "2"))
    assert '# mtype_local=2 is "MTYPE_RW" in the words of linux 6.3.1\n' in text(old)


def test_by_the_command_line_as_a_user_would(root, tmp_path):
    before = snapshot(root)
    words = [sys.executable, "-m", "rocm_patch"]
    environment = {**os.environ, "HOME": str(tmp_path)}

    def call(*arguments):
        return subprocess.run([*words, *arguments], capture_output=True, text=True, env=environment, check=False)

    plan = str(tmp_path / "plan.json")
    planned = call("plan", "--root", str(root), "--remedy", "mtype-local", "--set", "value=1", "-o", plan)
    assert planned.returncode == 0, planned.stderr
    assert "+options amdgpu mtype_local=1" in planned.stdout
    assert f"also: /boot/initrd.img-{DEBIAN}: made anew where it holds amdgpu" in planned.stdout
    shown = call("apply", "--root", str(root), plan, "--dry-run", "--json")
    assert json.loads(shown.stdout)["also"][0].startswith(f"/boot/initrd.img-{DEBIAN}: made anew")
    assert snapshot(root) == before
    applied = call("apply", "--root", str(root), plan, "--yes")
    assert applied.returncode == 0, applied.stderr
    assert call("rollback", "--root", str(root), "--all", "--yes").returncode == 0
    assert snapshot(root) == before
    wrong = call("plan", "--root", str(root), "--remedy", "mtype-local", "--set", "value=3")
    assert (wrong.returncode, "they allow [0-2]" in wrong.stderr) == (EXIT_USAGE, True), wrong.stderr


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("id_", "value"),
    [
        ("noretry", "2"), ("noretry", "0 cwsr_enable=0"), ("noretry", "0\noptions amdgpu x=1"), ("mtype-local", "3"),
        ("vm-fragment-size", "10"), ("gpu-recovery", "yes"), ("lockup-timeout", "5"), ("lockup-timeout", "1000,1000,1000,1000,1000"),
        ("cwsr-disable", "-1"),
    ],
)  # fmt: skip
def test_values_that_are_never_written(root, id_, value):
    before = snapshot(root)
    refused(lambda: do(root, step(id_, value)), "not a value that our tables allow")
    assert snapshot(root) == before


def test_the_kernels_own_list_has_the_last_word(root):
    """gpu_recovery of a kernel to come might lose -1: our table's word is not enough."""
    kernel(root, DEBIAN, {"gpu_recovery": ("int", "Enable (1 = enable, 0 = disable)"), "noretry": ("bool", "")})
    refused(lambda: do(root, step("gpu-recovery", "-1")), "not among the values that the kernel describes (0 to 1)", DEBIAN)
    refused(lambda: do(root, step("noretry", "-1")), "not of the type", "(bool)")


def test_debian_12s_kernel_has_no_such_parameter(tmp_path):
    kernel(tmp_path, "6.1.0-56-amd64", TEXTS_61)
    before = snapshot(tmp_path)
    refused(lambda: do(tmp_path, step("mtype-local")), "linux 6.1.0-56-amd64", "amdgpu.mtype_local")
    do(tmp_path, step("noretry"))
    back(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_root_without_kernels(tmp_path):
    refused(lambda: do(tmp_path, step("noretry")), f"{tmp_path}/lib/modules")


def test_a_driver_that_is_built_in_is_told_where_its_options_stand(tmp_path):
    put(tmp_path, "lib/modules/6.12.1/modules.builtin.modinfo", modinfo({"noretry": ("int", "")}, b"amdgpu."))
    refused(lambda: do(tmp_path, step("noretry")), "built in", "amdgpu.noretry=0")


def test_a_foreign_file_of_our_name_stays(root):
    put(root, DROP_IN, "options amdgpu noretry=1\n")
    before = snapshot(root)
    refused(lambda: do(root, step("noretry")), "not as rocm-patch left it", f"sudo mv {root}/{DROP_IN}")
    assert snapshot(root) == before


def test_an_edit_of_ours_stays_and_is_named(root):
    do(root, step("noretry"))
    put(root, DROP_IN, text(root) + "options amdgpu dc=0\n")
    receipt = back(root)[0]
    assert receipt.left == ("/" + DROP_IN,)
    assert "dc=0" in text(root)


@pytest.mark.parametrize(
    ("path", "data", "words"),
    [
        ("boot/efi/EFI/Linux/linux-6.12.efi", b"MZ", ("unified kernel image", "/root tee", "dracut --force --uefi")),
        ("efi/EFI/Linux/arch-linux.efi", b"MZ", ("unified kernel image",)),
        ("etc/kernel/install.conf", b"# mine\nlayout = uki\n", ("layout=uki", "sudo")),
        ("ostree/repo/config", b"", ("deployed by ostree", "rpm-ostree initramfs-etc --track=")),
        ("etc/NIXOS", b"", ("boot.extraModprobeConfig",)),
    ],
)
def test_images_that_are_not_ours_to_make(root, path, data, words):
    put(root, path, data)
    put(root, "usr/bin/rpm-ostree", b"")
    before = snapshot(root)
    refused(lambda: do(root, step("noretry")), *words)
    assert snapshot(root) == before


def test_layouts_that_only_look_like_it(root):
    put(root, "usr/lib/kernel/install.conf", "layout=bls\n")
    put(root, "boot/efi/EFI/Linux/readme.txt", "")
    assert do(root, step("noretry")).outcome == "applied"


# ------------------------------------------------------------------ the image, under another root without its tools


def test_an_image_with_the_driver_is_named_with_the_command_for_it(root):
    put(root, f"boot/initrd.img-{DEBIAN}", image({**DEBIAN_MARKS, **driver()}))
    before = managed(root)
    line = next(line for line in do(root, step("noretry")).verified if "initrd.img" in line)
    assert line.startswith("to do: ")
    assert "holds amdgpu and not what" in line
    assert "/usr/sbin/mkinitramfs is not there" in line
    assert f"sudo chroot {root} update-initramfs -u -k {DEBIAN}" in line
    # The user did as told; when our file goes, the image still holds it, and that is said again.
    put(root, f"boot/initrd.img-{DEBIAN}", image({**DEBIAN_MARKS, **driver(), DROP_IN: (root / DROP_IN).read_bytes()}))
    receipt = back(root)[0]
    assert any(f"update-initramfs -u -k {DEBIAN}" in line for line in receipt.unfinished)
    put(root, f"boot/initrd.img-{DEBIAN}", image({**DEBIAN_MARKS, **driver()}))
    assert managed(root) == before


def test_a_kernel_that_came_since_is_looked_at_on_the_way_back(root):
    do(root, step("noretry"))
    kernel(root, "6.13.1-test")
    put(root, "boot/initrd.img-6.13.1-test", image({**DEBIAN_MARKS, **driver("6.13.1-test"), DROP_IN: (root / DROP_IN).read_bytes()}))
    receipt = back(root)[0]
    assert any("update-initramfs -u -k 6.13.1-test" in line for line in receipt.unfinished), receipt.unfinished


def test_an_image_that_already_holds_it(root):
    do(root, step("noretry"))
    held = (root / DROP_IN).read_bytes()
    back(root)
    put(root, f"boot/initrd.img-{DEBIAN}", image({**DEBIAN_MARKS, **driver(), DROP_IN: held}))
    assert any("holds amdgpu and this file, byte for byte" in line for line in do(root, step("noretry")).verified)


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        (
            "initramfs-6.12.117-test.img",
            {"usr/lib/dracut/build-parameter.txt": b"", **driver()},
            "dracut --force /boot/initramfs-6.12.117-test.img 6.12.117",
        ),
        ("initramfs-linux.img", {"init_functions": b"", "buildconfig": b"", **driver()}, "mkinitcpio -P"),
        ("initramfs-linux.img", {"etc/booster.init.yaml": b"", **driver()}, "modprobe_options in /etc/booster.yaml"),
        ("initrd-6.12.117-test", {"squashfs-root.img": b"hsqs"}, "not looked into (its files lie in a file system inside it)"),
        ("initrd-6.12.117-test", {"init": b"", **driver()}, "what made it is not known"),
    ],
)
def test_makers_by_what_their_images_hold(root, name, files, words):
    os.unlink(root / f"boot/initrd.img-{DEBIAN}")
    put(root, f"boot/{name}", image(files))
    put(root, f"lib/modules/{DEBIAN}/pkgbase", "linux\n")
    said = do(root, step("noretry")).verified
    assert any(words in line for line in said), said


def test_an_image_that_is_no_image_is_not_guessed_at(root):
    put(root, f"boot/initrd.img-{DEBIAN}", b"\x1f\x8b damaged")
    assert any("not looked into" in line for line in do(root, step("noretry")).verified)


def test_an_empty_boot_is_said(root):
    os.unlink(root / f"boot/initrd.img-{DEBIAN}")
    assert any("if /boot is a partition of its own" in line for line in do(root, step("noretry")).verified)


# ------------------------------------------------------------------ who else sets it


def test_rivals_are_shown_with_who_wins(root):
    put(root, "etc/modprobe.d/amd.conf", "# options amdgpu noretry=7\noptions amdgpu dc=1 \\\n  noretry=1\n")
    said = do(root, step("noretry")).verified
    assert "note: amdgpu.noretry: also set to 1 by /etc/modprobe.d/amd.conf line 2; ours comes last and wins" in said
    back(root)
    put(root, "usr/lib/modprobe.d/zzz.conf", "options amdgpu noretry=-1\n")
    said = do(root, step("noretry")).verified
    assert "note: amdgpu.noretry: also set to -1 by /usr/lib/modprobe.d/zzz.conf line 1, which comes last and wins" in said
    back(root)
    put(root, "etc/default/grub", '#GRUB_CMDLINE_LINUX="amdgpu.noretry=5"\nGRUB_CMDLINE_LINUX_DEFAULT="quiet amdgpu.noretry=1"\n')
    said = do(root, step("noretry")).verified
    assert any("also set to 1 by the kernel command line in /etc/default/grub, which comes last and wins" in line for line in said)
    assert not any("set to 5" in line for line in said)


def test_our_order_is_that_of_the_real_modprobe(tmp_path):
    """Random folders, compared with `modprobe -c`."""
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin")
    if program is None:
        pytest.skip("kmod is not installed")
    dice = random.Random(11)
    for number in range(40):
        there = tmp_path / str(number)
        for _ in range(dice.randrange(1, 7)):
            name = dice.choice(("a", "b", "m-x", "m_x", "zz", "Z")) + dice.choice((".conf", ".conf", ".alias", ".txt"))
            lines = dice.choices(
                ["options amdgpu a=1 b=2", "options amdgpu a=3", "options  amdgpu\ta=4", "# options amdgpu a=5 \\", "options radeon a=6",
                 "options amdgpu \\", " c=7", "", "options amdgpu cwsr-enable=8", "blacklist amdgpu"], k=dice.randrange(6),
            )  # fmt: skip
            put(there, f"{dice.choice(modprobe_config.FOLDERS[:2] + modprobe_config.FOLDERS[3:4])}/{name}", "".join(f"{line}\n" for line in lines))
        folders = [word for folder in modprobe_config.FOLDERS if (there / folder).is_dir() for word in ("-C", str(there / folder))]
        out = subprocess.run([program, "-c", *folders], capture_output=True, text=True, check=True).stdout
        said = [word for line in out.splitlines() if line.startswith("options amdgpu ") for word in line.split()[2:]]
        ours = [f"{option.name}={option.value}" for option in modprobe_config.read(Root(str(there)), "amdgpu").given]
        assert ours == [f"{word.replace('-', '_')}{'' if '=' in word else '='}" for word in said], (number, out)


def test_a_file_that_modprobe_would_not_take_stops_the_change(root, monkeypatch):
    if not any(os.path.exists(path) for path in modprobe.MODPROBE):
        pytest.skip("kmod is not installed")
    monkeypatch.setattr(modprobe, "text_of", lambda _: "options amdgpu\n")
    monkeypatch.setattr(modprobe, "parse", lambda _: {})
    before = snapshot(root)
    with pytest.raises(RocmPatchError, match="ignoring bad line"):
        do(root, step("noretry"))
    assert snapshot(root) == before


# ------------------------------------------------------------------ the file's text


@pytest.mark.parametrize(
    "extra", ["install amdgpu /bin/sh", "options amdgpu noretry=$(id)", "options amdgpu noretry=0 \\", "options radeon a=1", "# hello", "é"]
)
def test_lines_that_we_do_not_write(extra):
    good = modprobe.text_of({"noretry": modprobe.Wanted("0", '# noretry=0 is "retry enabled" in the words of linux 6.12')})
    assert modprobe.text_of(modprobe.parse(good.encode())) == good
    with pytest.raises(FormatError):
        modprobe.parse(f"{good}{extra}\n".encode())


# ------------------------------------------------------------------ after the restart


@pytest.mark.parametrize(
    ("answer", "given", "since_start", "loaded", "holds", "word"),
    [
        (Known("0", "x"), (), False, True, True, ""),
        (Known("-1", "x"), (), True, True, False, "not yet: restart"),
        (Known("-1", "x"), (), False, True, False, "an initramfs that is older"),
        (Known("1", "x"), (OURS, Option("noretry", "1", "/proc/cmdline", 0)), True, True, False, "command line in /proc/cmdline"),
        (Known("1", "x"), (Option("noretry", "1", "/etc/modprobe.d/a.conf", 1), OURS), True, True, False, "not yet"),
        (Known(None, "x"), (), True, True, False, "no such parameter"),
        (Known(None, "x"), (), True, False, False, "not loaded"),
        (Unknown("Permission denied", "x"), (), True, True, None, "cannot be read"),
    ],
)  # fmt: skip
def test_the_running_kernel_is_asked(answer, given, since_start, loaded, holds, word):
    held = modprobe.compare("noretry", "0", answer, given, since_start=since_start, loaded=loaded)
    assert (held.name, held.wanted, held.where, held.holds) == ("amdgpu.noretry", "0", "/sys/module/amdgpu/parameters/noretry", holds)
    assert word in held.why


def test_truth_is_shown_as_letters():
    assert modprobe.compare("x", "1", Known("Y", "x"), (), since_start=False, loaded=True).holds
    assert not modprobe.compare("x", "0", Known("Y", "x"), (), since_start=False, loaded=True).holds


def test_under_another_root_nothing_of_this_kernel_is_read(root):
    do(root, step("noretry"))
    look = engine.peek(Locations(str(root)).ground("system"), knowledge.load())
    (held,) = modprobe.in_force((), look)
    assert (held.name, held.wanted, held.found, held.holds) == ("amdgpu.noretry", "0", None, None)


def test_the_doctor_knows_our_file(root):
    """It would tell the user to delete words from it with sed, and then call that a foreign edit."""
    do(root, step("mtype-local"))
    place = Root(str(root))
    found, _ = settings.collect(place, user.find(place, recorded.read(place)), knowledge.load(), {})
    assert [(item.name, item.value, item.ours) for item in found if item.origin == "modprobe"] == [("amdgpu.mtype_local", "1", True)]


# ------------------------------------------------------------------ what the evidence says


@pytest.mark.parametrize(
    ("id_", "gfx", "version", "expected"),
    [
        ("mtype-local", "gfx1010", "6.12.1", "no effect"), ("mtype-local", "gfx1030", "7.2.0", "no effect"),
        ("noretry", "gfx1010", "6.8.0-40-generic", "no effect"), ("noretry", "gfx1012", "6.14.0", "untested"),
        ("noretry", "gfx1010", "7.2.3", "harmful"),
        ("noretry", "gfx1031", "6.8.0", "harmful"), ("vm-fragment-size", "gfx1032", "6.8.0", "no effect"),
        ("gpu-recovery", "gfx1010", "6.8.0", "no effect"), ("lockup-timeout", "gfx1035", "6.8.0", "no effect"),
        ("cwsr-disable", "gfx1010", "6.8.0", "untested"), ("cwsr-disable", "gfx1030", "6.8.0", "untested"),
    ],
)  # fmt: skip
def test_the_status_is_derived(id_, gfx, version, expected):
    tables = knowledge.load()
    rows = in_scope(tables.evidence, id_, Context(gfx=gfx, kernel=version))
    assert status(rows) == expected
    assert not recommended(rows)
    assert tables.remedies[id_].by_name


def test_the_tables_agree_with_the_kind():
    tables = knowledge.load()
    assert {row.id for row in tables.remedies.values() if row.kind == "modprobe"} == set(modprobe.REMEDIES) == set(SIX)
    for name, default in modprobe.REMEDIES.values():
        row = tables.settings[f"amdgpu.{name}"]
        assert row.may_set
        assert not default or re.fullmatch(row.may_set, default)
