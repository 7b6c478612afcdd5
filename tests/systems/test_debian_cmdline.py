"""Kernel words on whole Debian systems: what grub-mkconfig, grub-script-check and grub-editenv themselves make of them."""

from __future__ import annotations

import os

from systems import debian
from systems.support import MANAGED, changed

MENU = "/boot/grub/grub.cfg"
DROP_IN = "/etc/default/grub.d/zz-rocm-patch.cfg"
WORD = "iommu=pt"


def test_the_menu_made_anew_differs_by_our_word_on_the_lines_meant(system, tool):
    """Line by line, and not by the product's own parser: kernel lines of plain entries get one word more, all else is as it was."""
    before = system.digest(*MANAGED)
    old = system.path(MENU).read_text().splitlines()
    tool.apply("iommu-passthrough", "stage=direct")
    new = system.path(MENU).read_text().splitlines()
    assert len(new) == len(old)
    pairs = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
    kernels = [line for line in old if line.split()[:1] == ["linux"]]
    repair = [line for line in kernels if "single" in line.split()]
    assert len(kernels) == 3
    assert len(repair) == 1
    assert [one for one, _ in pairs] == [line for line in kernels if line not in repair]
    assert all(other == f"{one} {WORD}" for one, other in pairs)
    assert changed(before, system.digest(*MANAGED)) == sorted([MENU, DROP_IN])

    system.call("grub-script-check", MENU)
    system.call("update-grub")
    assert system.path(MENU).read_text().splitlines() == new, "the system's own run makes another menu"

    tool.rollback()
    assert changed(before, system.digest(*MANAGED)) == []
    system.call("update-grub")
    assert system.path(MENU).read_text().splitlines() == old


def test_a_trial_leaves_the_menu_alone_and_chooses_its_entry_for_one_start(system, tool):
    """grub-editenv reads the choice; the entry is the default one and our word; rollback is to the byte."""
    before = system.digest(*MANAGED)
    tool.apply("iommu-passthrough", "stage=trial")
    assert system.digest("/boot")[MENU] == before[MENU]
    listed = system.call("grub-editenv", "/boot/grub/grubenv", "list").stdout.splitlines()
    assert listed == ["next_entry=rocm-patch-trial"]
    system.call("grub-script-check", "/boot/grub/custom.cfg")
    menu, custom = system.path(MENU).read_text(), system.path("/boot/grub/custom.cfg").read_text()
    fallback, tried = [line.split() for line in custom.splitlines() if line.split()[:1] == ["linux"]]
    default = next(line.split() for line in menu.splitlines() if line.split()[:1] == ["linux"])
    assert tried == [*default, WORD]
    assert fallback == default, "where GRUB cannot write its environment block the entry shall be the default one"
    # The unit is one that systemd itself would start.
    assert "rocm-patch-trial.service" in system.call("systemctl", "list-unit-files", "--state=enabled", "--plain", "--no-legend").stdout

    tool.rollback()
    assert changed(before, system.digest(*MANAGED)) == []


def test_a_trial_that_grub_has_begun_is_taken_back_too(system, tool):
    """GRUB clears the choice and leaves its name with nothing behind it: the block is not as we left it, and not somebody's edit."""
    before = system.digest(*MANAGED)
    tool.apply("iommu-passthrough", "stage=trial")
    system.call("grub-editenv", "/boot/grub/grubenv", "set", "next_entry=")
    tool.rollback()
    assert changed(before, system.digest(*MANAGED)) == []


def test_nothing_is_confirmed_that_no_start_has_shown(system):
    """A restart has not happened: the word is on no running kernel's line."""
    system.install_tool()
    tool = debian.Tool(system, inside=True)
    tool.apply("iommu-passthrough", "stage=trial")
    before = system.digest(*MANAGED)
    ended = tool("confirm", "--yes", check=False)
    assert ended.returncode == 5
    assert WORD in ended.stderr
    assert system.digest(*MANAGED) == before


def test_an_edit_of_the_settings_that_would_come_in_with_ours_stops_it(system, tool):
    """The user changed /etc/default/grub and has not made the menu anew: that is theirs to try first."""
    settings = system.path("/etc/default/grub")
    settings.write_text(settings.read_text().replace("quiet", "quiet splash"))
    before = system.digest(*MANAGED)
    tool.plan("iommu-passthrough", "stage=direct")
    ended = tool("apply", tool.file, "--yes", check=False)
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert "splash" in ended.stderr
    assert changed(before, system.digest(*MANAGED)) == []


def test_a_full_boot_folder_is_refused_with_nothing_changed(debian_13):
    """Less room than one more image takes: before anything is written, not in the middle."""
    before = debian_13.digest(*MANAGED)
    filler = debian_13.path("/boot/filler")
    room = os.statvfs(debian_13.root)
    size = room.f_bavail * room.f_frsize - (4 << 20)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    tool = debian.Tool(debian_13, inside=False)
    tool.plan("mtype-local", "value=1")
    ended = tool("apply", tool.file, "--yes", check=False)
    assert ended.returncode == 5, ended.stdout + ended.stderr
    assert "MiB free" in ended.stderr
    filler.unlink()
    assert changed(before, debian_13.digest(*MANAGED)) == []
