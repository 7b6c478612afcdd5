"""Kernel words: what is written on each layout of boot loaders, what is refused with whose command, and the way from trial to permanent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from changes_support import TABLES, clone, difference, do_apply, do_rollback, managed, plan_for, snapshot

import rocm_patch
from rocm_patch.apply import confirm, status
from rocm_patch.changes import Locations, boot_loaders, cmdline, cmdline_trial, custom_menu, engine, grub_drop_in, grub_environment, grub_menu
from rocm_patch.changes.kind import Look
from rocm_patch.errors import RefusedError
from rocm_patch.model import Step
from rocm_patch.root import Root

GOLDEN = Path(__file__).with_name("golden") / "cmdline"
WRITE = os.environ.get("ROCM_PATCH_GOLDEN") == "write"
LAYOUTS = {
    "debian-12": "grub", "ubuntu-24.04": "grub", "arch-grub": "grub, one file of settings", "opensuse-tumbleweed": "grub, one file of settings",
    "fedora-42": "grub, loader entries", "arch-systemd-boot": "systemd-boot", "fedora-systemd-boot": "systemd-boot",
    "debian-systemd-boot": "systemd-boot", "unified-image": "unified image", "pop-os-22.04": "kernelstub",
    "silverblue-42": "rpm-ostree", "bootc-image": "bootc", "no-loader": "unknown",
}  # fmt: skip
FOREIGN = ("/etc/default/grub", "/etc/default/grub.d/init-select.cfg", "/etc/kernel/cmdline", "/etc/grub.d", "/boot/loader/loader.conf")
OURS = (grub_drop_in.PATH, "/etc/default/grub.d")
DROP_IN = "etc/default/grub.d/zz-rocm-patch.cfg"


def step(stage, word=""):
    remedy = "amdgpu-kernel-word" if word else "iommu-passthrough"
    return (Step(remedy, "system", {"stage": (stage,), **({"word": (word,)} if word else {})}),)


@pytest.fixture
def layout(tmp_path):
    def make(name):
        (tmp_path / "var").mkdir()
        return Path(clone(GOLDEN / name / "before", tmp_path / "root"))

    return make


def menu_of(root):
    return root / ("boot/grub2" if (root / "boot/grub2").exists() else "boot/grub")


# ------------------------------------------------------------------ layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised(name):
    assert boot_loaders.recognise(Root(str(GOLDEN / name / "before"))).name == LAYOUTS[name]


@pytest.mark.parametrize("stage", cmdline.STAGES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_golden(name, stage, layout):
    """What becomes of each layout is a tree of the changed files, or the text of the refusal: see golden/cmdline."""
    root, wanted = layout(name), GOLDEN / name / stage
    before = snapshot(root)
    try:
        do_apply(root, step(stage))
    except RefusedError as error:
        said = f"{error.what}\n{error.hint}\n".replace(str(root), "/mnt")
        if WRITE:
            (wanted / "refused.txt").write_text(said)
        assert (wanted / "refused.txt").read_text() == said
        assert snapshot(root) == before
        return
    after = managed(root)
    changed = {path: row for path, row in after.items() if row != before.get(path) and row[0] == "file"}
    files = {str(path.relative_to(wanted)): path.read_bytes() for path in wanted.rglob("*") if path.is_file()}
    assert {path: row[4] for path, row in changed.items()} == files
    assert not [path for path in difference(before, after) if f"/{path}".startswith(FOREIGN) and f"/{path}" not in OURS]
    do_rollback(root)
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["debian-12", "ubuntu-24.04", "arch-grub"])
def test_the_trial_leaves_the_menu_alone_and_the_default_what_it_was(name, layout):
    """Structure, by the parser: one entry more, in a file of ours; named for one start; nobody's recovery entry touched."""
    root = layout(name)
    menu = (menu_of(root) / "grub.cfg").read_bytes()
    known = grub_environment.parse((menu_of(root) / "grubenv").read_bytes()).values()
    do_apply(root, step("trial"))
    assert (menu_of(root) / "grub.cfg").read_bytes() == menu
    block = (menu_of(root) / "grubenv").read_bytes()
    assert len(block) == 1024
    assert grub_environment.parse(block).values() == {**known, "next_entry": cmdline_trial.ENTRY}
    parsed = grub_menu.parse(menu)
    default = grub_menu.default_entry(parsed, known)
    (ours,) = grub_menu.parse((menu_of(root) / "custom.cfg").read_bytes()).entries
    assert (ours.id, ours.title) == (cmdline_trial.ENTRY, cmdline_trial.TITLE)
    kernels = [command.values for command in ours.commands if command.name == "linux"]
    assert kernels == [default.kernel.values, (*default.kernel.values, "iommu=pt")]
    assert not [command for command in ours.commands if command.name == "savedefault"]
    link = root / "etc/systemd/system/multi-user.target.wants/rocm-patch-trial.service"
    assert os.readlink(link) == cmdline_trial.UNIT
    assert cmdline_trial.unit_words(Locations(str(root)).ground("system").tree().state(cmdline_trial.UNIT[1:])) == ("iommu=pt",)


# ------------------------------------------------------------------ what is never written


@pytest.mark.parametrize(
    "word",
    [
        "iommu=off",
        "iommu=pt quiet",
        "iommu",
        "init=/bin/sh",
        "amdgpu.noretry=0;reboot",
        "amdgpu.noretry=$(id)",
        "amdgpu.noretry=" + "0" * 60,
        "x'",
        "single",
    ],
)
def test_only_words_of_the_tables_in_a_plain_form(word):
    with pytest.raises(RefusedError):
        cmdline.validate(step("direct", word)[0], TABLES)


def test_other_parameters_and_stages_are_refused():
    for parameters in ({"path": ("/etc/default/grub",)}, {"stage": ("now",)}, {"stage": ("trial", "direct")}, {"word": ("iommu=off",)}):
        with pytest.raises(RefusedError):
            cmdline.validate(Step("iommu-passthrough", "system", parameters), TABLES)
    with pytest.raises(RefusedError, match="which word"):
        cmdline.validate(Step("amdgpu-kernel-word", "system", {}), TABLES)


def test_a_line_that_is_too_long_is_refused(layout):
    root = layout("debian-12")
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace(" quiet\n", f" quiet {'x' * 1950}\n"))
    for stage in cmdline.STAGES:
        with pytest.raises(RefusedError, match="cuts it off after 2047"):
            do_apply(root, step(stage))


@pytest.mark.parametrize(("there", "says"), [("iommu=pt", "on the kernel's line already"), ("iommu=soft", "would stand beside iommu=soft")])
def test_a_word_that_somebody_else_set_is_left_to_them(layout, there, says):
    root = layout("debian-12")
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace(" quiet\n", f" quiet {there}\n"))
    for stage in cmdline.STAGES:
        with pytest.raises(RefusedError, match=says):
            do_apply(root, step(stage))


def test_files_of_that_name_that_are_not_ours_stay(layout):
    root = layout("debian-12")
    (root / DROP_IN).write_text("GRUB_TIMEOUT=0\n")
    with pytest.raises(RefusedError, match="not as rocm-patch left it"):
        do_apply(root, step("direct"))
    (root / DROP_IN).unlink()
    (root / "boot/grub/custom.cfg").write_text("menuentry 'mine' {\n\ttrue\n}\n")
    with pytest.raises(RefusedError, match="somebody else's"):
        do_apply(root, step("trial"))
    assert (root / "boot/grub/custom.cfg").read_text().startswith("menuentry 'mine'")


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("lvm", "through lvm"),
        ("mdraid1x", "through mdraid1x"),
        ("btrfs", "through btrfs"),
        ("zfs", "through zfs"),
        ("cryptodisk", "through cryptodisk"),
    ],
)
def test_no_trial_where_grub_cannot_take_its_choice_back(layout, module, says):
    root = layout("debian-12")
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace("insmod ext2", f"insmod {module}"))
    with pytest.raises(RefusedError, match=says) as caught:
        do_apply(root, step("trial"))
    menu.write_text(f"insmod {module}\n" + menu.read_text().replace(f"insmod {module}", "insmod ext2"))
    assert len(plan_for(step("trial"), Locations(str(root))).facts) == 2, "fonts may lie on it, /boot does not"
    assert "stage=direct" in caught.value.hint
    do_apply(root, step("direct"))
    assert (root / DROP_IN).exists()


def test_no_trial_without_an_environment_block_of_grubs_own(layout):
    root = layout("debian-12")
    block = root / "boot/grub/grubenv"
    data = block.read_bytes()
    block.unlink()
    with pytest.raises(RefusedError, match="is not there"):
        do_apply(root, step("trial"))
    (root / "boot/efi").mkdir()
    (root / "boot/efi/grubenv").write_bytes(data)
    block.symlink_to("../efi/grubenv")
    with pytest.raises(RefusedError, match="is a link"):
        do_apply(root, step("trial"))
    block.unlink()
    block.write_bytes(grub_environment.render(grub_environment.parse(data).with_value("next_entry", "windows")))
    with pytest.raises(RefusedError, match="somebody else's choice"):
        do_apply(root, step("trial"))


def test_no_trial_where_the_default_cannot_be_told(layout):
    root = layout("debian-12")
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace('set default="0"', 'set default="nobody"'))
    for stage in cmdline.STAGES:
        with pytest.raises(RefusedError, match="has no entry 'nobody'"):
            do_apply(root, step(stage))


def test_no_trial_where_signatures_or_the_lack_of_systemd_stand_against_it(layout):
    root = layout("debian-12")
    menu = root / "boot/grub/grub.cfg"
    text = menu.read_text()
    menu.write_text("set check_signatures=enforce\n" + text)
    with pytest.raises(RefusedError, match="signed files only"):
        do_apply(root, step("trial"))
    menu.write_text(text)
    (root / "usr/lib/systemd/systemd").unlink()
    with pytest.raises(RefusedError, match="no systemd"):
        do_apply(root, step("trial"))


# ------------------------------------------------------------------ several, again, back


def test_a_second_word_joins_the_first_and_goes_alone(layout):
    root = layout("debian-12")
    before = snapshot(root)
    do_apply(root, step("direct"))
    kernel = root / "lib/modules/6.1.0-9-amd64"
    kernel.mkdir(parents=True)
    (kernel / "modules.builtin.modinfo").write_bytes(
        b"amdgpu.parmtype=noretry:int\0amdgpu.parm=noretry:Disable retry faults (0 = retry, 1 = no retry)\0"
    )
    do_apply(root, step("direct", "amdgpu.noretry=0"))
    assert (root / DROP_IN).read_text().splitlines()[-1].endswith(' iommu=pt amdgpu.noretry=0"')
    do_rollback(root, everything=False)
    assert (root / DROP_IN).read_text().splitlines()[-1].endswith(' iommu=pt"')
    do_rollback(root)
    shutil.rmtree(root / "lib")
    assert snapshot(root) == before


def test_a_parameter_that_no_kernel_here_has_is_refused(layout):
    root = layout("debian-12")
    kernel = root / "lib/modules/6.1.0-9-amd64"
    kernel.mkdir(parents=True)
    (kernel / "modules.builtin.modinfo").write_bytes(b"amdgpu.parmtype=other:int\0")
    with pytest.raises(RefusedError, match=r"has no parameter amdgpu\.noretry"):
        do_apply(root, step("direct", "amdgpu.noretry=0"))


def test_rollback_after_grub_took_its_choice(layout):
    """At the trial's start GRUB empties the choice in place: that is no edit by a user, and the block ends as it began."""
    root = layout("debian-12")
    before = snapshot(root)
    do_apply(root, step("trial"))
    block = root / "boot/grub/grubenv"
    block.write_bytes(grub_environment.render(grub_environment.parse(block.read_bytes()).with_value("next_entry", "")))
    receipt = do_rollback(root)[0]
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert snapshot(root) == before


def test_rollback_keeps_what_others_put_into_the_block(layout):
    root = layout("debian-12")
    do_apply(root, step("trial"))
    block = root / "boot/grub/grubenv"
    block.write_bytes(grub_environment.render(grub_environment.parse(block.read_bytes()).with_value("saved_entry", "2")))
    do_rollback(root)
    assert grub_environment.parse(block.read_bytes()).values() == {"saved_entry": "2"}


def test_a_menu_that_was_made_anew_elsewhere_is_named_after_a_rollback(layout):
    """Applied from a rescue system, the menu made anew by the machine itself, taken back from the rescue system again."""
    root = layout("debian-12")
    do_apply(root, step("direct"))
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace(" quiet\n", " quiet iommu=pt\n"))
    receipt = do_rollback(root)[0]
    assert receipt.outcome == "partly rolled back"
    assert any("still has iommu=pt" in line and "grub-mkconfig" in line for line in receipt.unfinished)
    menu.write_text(menu.read_text().replace(" quiet iommu=pt\n", " quiet\n"))
    assert do_rollback(root)[0].outcome == "rolled back"
    assert not (root / "var/lib/rocm-patch").exists()


@pytest.mark.parametrize("there", [" quiet iommu=pt", " quiet"])
def test_a_menu_that_nobody_can_read_keeps_nothing_of_ours_in_place(layout, there):
    """A brace too many, by somebody's hand: the whole rollback was refused because of it."""
    root = layout("debian-12")
    before = snapshot(root)
    do_apply(root, step("direct"))
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(menu.read_text().replace(" quiet\n", f"{there}\n") + "}\n")
    receipt = do_rollback(root)[0]
    assert any("still has iommu=pt" in line for line in (*receipt.verified, *getattr(receipt, "unfinished", ()))) == ("iommu" in there)
    assert not (root / DROP_IN).exists()
    assert {path for path in before if before[path] != snapshot(root).get(path)} <= {"/boot/grub/grub.cfg", "boot/grub/grub.cfg"}


def test_a_menu_behind_a_link_keeps_nothing_of_ours_in_place(layout):
    root = layout("debian-12")
    do_apply(root, step("direct"))
    (root / "boot/grub").rename(root / "boot/elsewhere")
    (root / "boot/grub").symlink_to("elsewhere")
    do_rollback(root)
    assert not (root / DROP_IN).exists()


def test_our_entry_beside_another_of_ours(layout):
    """The menu entry that names an old initramfs lives in the same file."""
    root = layout("debian-12")
    do_apply(root, step("trial"))
    custom = root / "boot/grub/custom.cfg"
    both = custom_menu.with_entry(custom.read_bytes(), "rocm-patch-initramfs-6", "menuentry 'old' --id rocm-patch-initramfs-6 {\n\ttrue\n}\n")
    custom.write_bytes(both)
    do_rollback(root)
    assert list(custom_menu.parse(custom.read_bytes())) == ["rocm-patch-initramfs-6"]


# ------------------------------------------------------------------ from trial to permanent


@pytest.fixture
def machine(tmp_path):
    """What runs, as files: a boot with the words that came up, until a test says otherwise."""
    folder = tmp_path / "machine"
    for path, text in (
        ("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet iommu=pt\n"),
        ("proc/sys/kernel/random/boot_id", "11111111-0000-4000-8000-000000000000\n"),
        ("run/rocm-patch/trial", "11111111-0000-4000-8000-000000000000\nBOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet iommu=pt\n"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def look_at(root):
    return engine.peek(Locations(str(root)).ground("system"), TABLES)


def test_a_boot_with_the_words_and_the_note_passes(layout, machine):
    root = layout("debian-12")
    do_apply(root, step("trial"))
    cmdline_trial.check_passed(["iommu=pt"], look_at(root), Root(str(machine)))


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet\n", "runs without iommu=pt"),
        ("run/rocm-patch/trial", "22222222-0000-4000-8000-000000000000\niommu=pt\n", "did not come up whole"),
        ("run/rocm-patch/trial", "", "did not come up whole"),
    ],
)
def test_the_old_entry_or_an_unfinished_boot_does_not_pass(layout, machine, path, text, says):
    root = layout("debian-12")
    do_apply(root, step("trial"))
    (machine / path).write_text(text)
    with pytest.raises(RefusedError, match=says):
        cmdline_trial.check_passed(["iommu=pt"], look_at(root), Root(str(machine)))


def test_a_boot_without_its_card_does_not_pass(layout, machine):
    """The driver did not load: the screen may be dark, and the words are not kept."""
    root = layout("debian-12")
    do_apply(root, step("trial"))
    device = machine / "sys/bus/pci/devices/0000:03:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    (device / "class").write_text("0x030000\n")
    with pytest.raises(RefusedError, match="did not take the card"):
        cmdline_trial.check_passed(["iommu=pt"], look_at(root), Root(str(machine)))
    (machine / "sys/bus/pci/drivers/amdgpu/0000:03:00.0").mkdir(parents=True)
    cmdline_trial.check_passed(["iommu=pt"], look_at(root), Root(str(machine)))


def test_what_was_on_trial_becomes_permanent_and_goes_again(layout, monkeypatch):
    """What `confirm` does once the trial is passed: the drop-in instead of the trial's files, and both back to the byte."""
    root = layout("debian-12")
    before = snapshot(root)
    do_apply(root, step("trial"))
    monkeypatch.setattr(cmdline_trial, "check_passed", lambda words, look: None)
    receipt = confirm(Locations(str(root)), tables=TABLES, say=lambda _: None)[0]
    assert receipt.outcome == "applied"
    assert (root / DROP_IN).exists()
    assert not (root / "boot/grub/custom.cfg").exists()
    assert not (root / cmdline_trial.UNIT[1:]).exists()
    assert grub_environment.parse((root / "boot/grub/grubenv").read_bytes()).values() == {}
    with pytest.raises(RefusedError, match="nothing is on trial"):
        confirm(Locations(str(root)), tables=TABLES)
    do_rollback(root)
    assert snapshot(root) == before


def test_only_the_machine_itself_can_confirm(layout):
    root = layout("debian-12")
    with pytest.raises(RefusedError, match="nothing is on trial"):
        confirm(Locations(str(root)), tables=TABLES)
    do_apply(root, step("trial"))
    with pytest.raises(RefusedError, match="only the machine itself"):
        confirm(Locations(str(root)), tables=TABLES)


def test_where_the_line_is_not_ours_a_passed_trial_ends_with_its_owners_command(layout, monkeypatch):
    root = layout("arch-grub")
    do_apply(root, step("trial"))
    monkeypatch.setattr(cmdline_trial, "check_passed", lambda words, look: None)
    with pytest.raises(RefusedError) as caught:
        confirm(Locations(str(root)), tables=TABLES)
    assert "GRUB_CMDLINE_LINUX_DEFAULT" in caught.value.hint
    assert "iommu=pt" in caught.value.hint


def test_status_says_what_is_on_trial_and_what_is_in_force(layout):
    root = layout("debian-12")
    do_apply(root, step("trial"))
    (held,) = cmdline.in_force((), look_at(root))
    assert (held.name, held.wanted, held.holds) == ("iommu", "pt", None)
    assert "on trial" in held.why
    assert {file.state for file in status(Locations(str(root)))[0].files} == {"as left"}


def test_the_plan_is_made_without_reading_a_closed_menu(layout):
    """On many systems grub.cfg is root's alone: the plan names the files that root's side will check against it."""
    root = layout("debian-12")
    (root / "boot/grub/grub.cfg").write_text("not a menu that could be read {\n")
    ground = Locations(str(root)).ground("system")

    class Closed(type(ground.tree())):
        def state(self, path, limit=1 << 20):
            if path == "boot/grub/grub.cfg":
                raise PermissionError
            return super().state(path, limit)

    look = Look(ground, Closed(ground.anchor), TABLES, ())
    assert [change.path for change in cmdline.render(step("direct"), look)] == [grub_drop_in.PATH]
    assert [change.path for change in cmdline.render(step("trial"), look)] == [cmdline_trial.UNIT, cmdline_trial.WANTED]


def test_the_plan_file_holds_ids_and_no_bytes(layout):
    root = layout("debian-12")
    plan = plan_for(step("trial"), Locations(str(root)))
    assert set(plan.facts) == {f"system:{path[1:]}" for path in (cmdline_trial.UNIT, cmdline_trial.WANTED)}


def test_the_command_plans_applies_and_takes_back(layout):
    """The commands as a user types them, with the tables that are shipped."""
    root = layout("debian-12")
    before = snapshot(root)
    file = root.parent / "plan.json"
    environment = {"PATH": os.environ["PATH"], "HOME": str(root.parent), "PYTHONPATH": str(Path(rocm_patch.__file__).parents[1]), "LC_ALL": "C.UTF-8"}

    def run(*words, code=0):
        ended = subprocess.run([sys.executable, "-m", "rocm_patch", *words], capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    planned = run("plan", "--root", root, "--remedy", "iommu-passthrough", "-o", file)
    assert "+GRUB_CMDLINE_LINUX_DEFAULT" in planned
    assert "also: made by the system's own tools: /boot/grub/grub.cfg (grub-mkconfig)" in planned
    trial = run("plan", "--root", root, "--remedy", "iommu-passthrough", "--set", "stage=trial")
    assert "also: /boot/grub/custom.cfg: " in trial
    assert "also: /boot/grub/grubenv: " in trial
    assert snapshot(root) == before
    applied = run("apply", "--root", root, file, "--yes", "--json")
    (receipt,) = json.JSONDecoder().raw_decode(applied)[0]["receipts"]
    assert "/boot/grub/grub.cfg was not made anew" in receipt["to_do"][0]
    assert "not tried" in receipt["notes"][0]
    assert not any("not " in line for line in receipt["verified"])
    assert "already as planned, nothing to change" in run("plan", "--root", root, "--remedy", "iommu-passthrough")
    assert "nothing is on trial" in run("confirm", "--root", root, "--yes", code=5)
    run("rollback", "--root", root, "--all", "--yes")
    assert snapshot(root) == before
