"""Real starts of a real Debian with our changes: GRUB, linux 6.12 and its amdgpu, systemd, in emulation."""

from __future__ import annotations

from boot import scenarios
from boot.scenarios import NOT_LOADED, PANIC
from systems import debian
from systems.support import MANAGED, changed

# Of amdgpu in linux 6.12, on any card: what the driver shows where nothing was set.
DEFAULTS = {"mtype_local": "0", "noretry": "-1", "vm_fragment_size": "-1", "gpu_recovery": "-1", "cwsr_enable": "1", "lockup_timeout": ""}
OPTIONS = {
    "mtype-local": ("mtype_local", "1"),
    "noretry": ("noretry", "0"),
    "vm-fragment-size": ("vm_fragment_size", "9"),
    "gpu-recovery": ("gpu_recovery", "1"),
}
WORD = "iommu=pt"
MENU = "/boot/grub/grub.cfg"
BOOTS_TRIAL = "Booting `rocm-patch: "
"""GRUB's own line before it starts our entry."""
CONFIRM = f"PYTHONPATH={debian.TOOL}/site:{debian.TOOL}/src /usr/bin/python3 -m rocm_patch confirm --yes"


def mounted(disk):
    """The machine's system, switched off."""
    return debian.mounted(disk, debian.DEBIAN_13)


def test_module_options_are_in_force_after_a_start_and_gone_after_the_next(disk):
    """The driver is loaded in the initramfs: only an image made anew brings the option, and only one made anew again takes it away."""
    with mounted(disk) as system:
        scenarios.prepare(system)
        before = system.digest(*MANAGED)
        tool = debian.Tool(system, inside=False)
        for remedy, (_, value) in OPTIONS.items():
            tool.apply(remedy, f"value={value}")
    on = scenarios.start(disk)
    assert on.values["kernel"].startswith("6.12.")
    assert on.parameters() == DEFAULTS | dict(OPTIONS.values())

    with mounted(disk) as system:
        debian.Tool(system, inside=False).rollback()
        assert changed(before, system.digest(*MANAGED)) == []
    off = scenarios.start(disk)
    assert off.parameters() == DEFAULTS


def begin_trial(disk, also=""):
    """Our word on trial; `also`: words beside it that our tool would not write, put into its entry by hand."""
    with mounted(disk) as system:
        scenarios.prepare(system)
        before = system.digest(*MANAGED)
        debian.Tool(system, inside=False).apply("iommu-passthrough", "stage=trial")
        assert system.digest("/boot")[MENU] == before[MENU]
        custom = system.path("/boot/grub/custom.cfg")
        text = custom.read_text()
        assert text.count(f" {WORD}\n") == 1
        if also:
            custom.write_text(text.replace(f" {WORD}\n", f" {WORD} {also}\n"))


def test_a_trial_that_came_up_is_confirmed_and_taken_back(disk):
    """One start with the word, confirmed there; from then on every start has it; after a rollback none."""
    with mounted(disk) as system:
        scenarios.prepare(system, systemd=True)
        before = system.digest(*MANAGED)
        system.install_tool()
        debian.Tool(system, inside=False).apply("iommu-passthrough", "stage=trial")
        # The machine makes its menu itself first: the one made on the mounted partition lacks `insmod part_msdos`, and
        # `confirm` refuses a menu that would change by more than our word.
        scenarios.prepare(system, commands=f"update-grub; {CONFIRM}; echo REPORT confirm $?", systemd=True)
    trial = scenarios.start(disk)
    assert WORD in trial.words
    assert trial.values["note"].endswith(trial.values["cmdline"] + " ")
    assert trial.values["confirm"] in ("0", "4"), trial.run.text[-3000:]

    with mounted(disk) as system:
        scenarios.prepare(system, systemd=True)
        assert f" {WORD}\n" in system.path(MENU).read_text()
    assert scenarios.start(disk).words.count(WORD) == 1

    with mounted(disk) as system:
        debian.Tool(system, inside=False).rollback()
        # systemd notes its first start in /etc/.updated.
        assert [path for path in changed(before, system.digest(*MANAGED)) if path != "/etc/.updated"] == [MENU]
        assert WORD not in system.path(MENU).read_text()
    assert WORD not in scenarios.start(disk).words


def test_a_trial_word_that_panics_costs_one_reset(disk):
    """The kernel finds neither its first program nor a root file system; somebody presses the button; the old entry comes up."""
    begin_trial(disk, also="rdinit=/none root=/dev/none")
    report = scenarios.start(disk, watch={PANIC: "reset"})
    assert report.run.resets == 1
    assert report.run.text.count(PANIC) == 1
    first, second = report.run.text.split(PANIC)
    assert BOOTS_TRIAL in first
    assert BOOTS_TRIAL not in second
    assert WORD not in report.words
    assert report.parameters() == DEFAULTS
    assert report.values["note"] == ""


def test_a_trial_word_that_keeps_amdgpu_from_loading_costs_one_reset(disk):
    """The driver does not load with a value of the wrong type; the machine comes up without it, and after a reset with it."""
    begin_trial(disk, also="amdgpu.noretry=none")
    trial = scenarios.start(disk)
    assert BOOTS_TRIAL in trial.run.text
    assert WORD in trial.words
    assert set(trial.parameters().values()) == {NOT_LOADED}
    after = scenarios.start(disk)
    assert WORD not in after.words
    assert after.parameters() == DEFAULTS


def test_where_grub_cannot_write_its_environment_block_the_trial_is_no_trial(disk):
    """GRUB could not take the choice back, so the entry would be chosen at every start: then it starts what the default starts."""
    begin_trial(disk)
    with mounted(disk) as system:
        (block,) = set(debian.run(["debugfs", "-R", "blocks /boot/grub/grubenv", system.device]).stdout.split())
    report = scenarios.start(disk, bad_sector=debian.PARTITION_START + int(block) * 8)
    assert "The environment block cannot be written" in report.run.text
    assert WORD not in report.words
    assert report.parameters() == DEFAULTS
