"""Loader entries: which are kernel-install's, our words in them and out again, and the plugin for those that come later."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from changes_support import EXHAUSTIVE, TABLES, DieAt, Killed, clone, count_operations, do_apply, do_recover, do_rollback, managed, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from rocm_patch.apply import confirm
from rocm_patch.changes import Locations, cmdline_trial, entry_files, install_plugin
from rocm_patch.errors import RefusedError
from rocm_patch.model import Step

GOLDEN = Path(__file__).with_name("golden") / "cmdline"
MACHINE = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
FEDORA = f"{MACHINE}-6.14.0-63.fc42.x86_64.conf"
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
ENTRY = "title A\nversion 6.1\nlinux /vmlinuz\ninitrd /initrd\noptions root=/dev/vda1 ro\n"
WORDS = st.sampled_from(["iommu=pt", "quiet", "amdgpu.noretry=0", "iommu=pto", "ro", "xiommu=pt", "root=UUID=0b-1c"])
OPTIONS = st.lists(WORDS, max_size=5).map(lambda words: "options" + "".join(f" {word}" for word in words))
LINES = st.one_of(OPTIONS, st.sampled_from(["title iommu=pt", "# options iommu=pt", "options\tquiet \t ro ", "optionsx iommu=pt", "linux /v", ""]))


def direct(word=""):
    return (Step("amdgpu-kernel-word" if word else "iommu-passthrough", "system", {"stage": ("direct",), **({"word": (word,)} if word else {})}),)


@pytest.fixture
def layout(tmp_path):
    def make(name):
        return Path(clone(GOLDEN / name / "before", tmp_path / "root"))

    return make


# ------------------------------------------------------------------ words


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=6), st.lists(WORDS, min_size=1, max_size=3, unique=True))
def test_the_words_go_out_as_they_came_in(lines, words):
    data = "".join(f"{line}\n" for line in lines).encode()
    there = {word for line in data.splitlines() if line.split()[:1] == [b"options"] for word in line.split()[1:]}
    after = entry_files.with_words(data, words)
    missing = [word for word in words if word.encode() not in there]
    assert entry_files.without_words(after, missing) == data
    assert entry_files.with_words(after, words) == after
    has_options = any(line.startswith(("options ", "options\t")) for line in lines)
    assert (after == data) == (not missing or not has_options)
    assert len(after.splitlines()) == len(data.splitlines())


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        ENTRY.replace("options ", "options\t"),
        ENTRY.replace("ro\n", "ro $tuned_params\n").replace("root=", "$kernelopts root="),
        ENTRY + "options quiet  \n# options\n",
        ENTRY.replace("ro\n", "ro iommu=pt\n"),
        "options ro\n" + ENTRY.replace("options root=/dev/vda1 ro\n", ""),
    ],
)
def test_the_plugin_does_to_an_entry_what_we_do(entry):
    words = ("iommu=pt", "amdgpu.noretry=0")
    assert install_plugin.tried(words, entry.encode()) == entry_files.with_words(entry.encode(), words)


# ------------------------------------------------------------------ the plugin


@pytest.fixture
def boot(tmp_path):
    """A boot partition and a way to run the plugin on it as kernel-install does."""
    folder = tmp_path / "boot"
    (folder / "loader/entries").mkdir(parents=True)
    plugin = tmp_path / "95-rocm-patch.install"
    plugin.write_bytes(install_plugin.text_of(("iommu=pt",)))

    def run(*arguments, shell=("sh",), path="/usr/bin:/bin", token=MACHINE):
        names = {"BOOT_ROOT": str(folder), "ENTRY_TOKEN": token, "MACHINE_ID": MACHINE}
        environment = {"PATH": path, **{f"KERNEL_INSTALL_{name}": value for name, value in names.items()}}
        program = shutil.which(shell[0])
        return subprocess.run([program, *shell[1:], str(plugin), *arguments], env=environment, capture_output=True, text=True, check=False)

    run.entries = folder / "loader/entries"
    return run


@pytest.mark.parametrize("shell", SHELLS)
def test_the_plugin_in_several_shells(boot, shell):
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"no {shell} here")
    names = [f"{MACHINE}-6.1.conf", f"{MACHINE}-6.1+3-0.conf", f"{MACHINE}-6.10.conf", f"{OTHER}-6.1.conf", "mine.conf"]
    for name in names:
        (boot.entries / name).write_text(ENTRY)
        os.chmod(boot.entries / name, 0o600)
    for _ in range(2):
        ended = boot("add", "6.1", "/nowhere", "/nowhere/linux", shell=SHELLS[shell])
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    have = [name for name in names if (boot.entries / name).read_text() == ENTRY.replace(" ro\n", " ro iommu=pt\n")]
    assert have == names[:2]
    assert all((boot.entries / name).read_text() == ENTRY for name in names[2:])
    assert sorted(os.listdir(boot.entries)) == sorted(names)
    assert {(boot.entries / name).stat().st_mode & 0o777 for name in names} == {0o600}


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        (("remove", "6.1"), ENTRY),
        (("inspect",), ENTRY),
        ((), ENTRY),
        (("add", "0-rescue-1"), ENTRY),
        (("add", "6.1"), ENTRY.replace("linux /vmlinuz", "efi /EFI/Linux/a.efi")),
        (("add", "6.1"), ENTRY.replace(" ro\n", " ro single\n")),
        (("add", "6.1"), ENTRY.replace("options root=/dev/vda1 ro\n", "")),
        (("add", "6.1"), ""),
    ],
)
def test_what_the_plugin_leaves_alone(boot, arguments, entry):
    path = boot.entries / f"{MACHINE}-{(*arguments, '', '')[1] or '6.1'}.conf"
    path.write_text(entry)
    ended = boot(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert path.read_text() == entry


def test_the_plugin_never_fails_a_kernels_installation(boot, tmp_path):
    """No room on the line, no programs, no folder: the kernel is installed, and the entry boots as before."""
    path = boot.entries / f"{MACHINE}-6.1.conf"
    long = ENTRY.replace(" ro\n", f" ro {'x' * 2000}\n")
    path.write_text(long)
    ended = boot("add", "6.1")
    assert (ended.returncode, path.read_text()) == (0, long)
    assert "no room for iommu=pt" in ended.stderr
    path.write_text(ENTRY)
    ended = boot("add", "6.1", path=str(tmp_path))
    assert (ended.returncode, path.read_text()) == (0, ENTRY)
    assert "stays without iommu=pt" in ended.stderr
    shutil.rmtree(boot.entries)
    assert boot("add", "6.1").returncode == 0


@pytest.mark.parametrize("with_token", [True, False])
def test_through_the_real_kernel_install(tmp_path, with_token):
    """The system's own kernel-install and the plugin by which it writes entries, in folders of this test."""
    program, writer = shutil.which("kernel-install"), Path("/usr/lib/kernel/install.d/90-loaderentry.install")
    if program is None or not writer.exists() or not Path("/etc/machine-id").exists():
        pytest.skip("no kernel-install with its plugins, or no machine-id here")
    token = "debian" if with_token else Path("/etc/machine-id").read_text().strip()
    boot, settings_ = tmp_path / "boot", tmp_path / "conf"
    (boot / token).mkdir(parents=True)
    settings_.mkdir()
    plugin = tmp_path / "95-rocm-patch.install"
    plugin.write_bytes(install_plugin.text_of(("iommu=pt",)))
    plugin.chmod(0o755)
    (settings_ / "install.conf").write_text(f"layout=bls\nBOOT_ROOT={boot}\n")
    (settings_ / "cmdline").write_text("root=/dev/vda1 ro quiet\n")
    (settings_ / "entry-token").write_text(f"{token}\n")
    (tmp_path / "vmlinuz").write_text("a kernel\n")
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "KERNEL_INSTALL_CONF_ROOT": str(settings_), "KERNEL_INSTALL_PLUGINS": f"{writer} {plugin}",
    }  # fmt: skip
    ended = subprocess.run([program, "add", "9.9.9-test", str(tmp_path / "vmlinuz")], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (entry,) = (boot / "loader/entries").iterdir()
    (options,) = [line.split()[1:] for line in entry.read_text().splitlines() if line.startswith("options")]
    assert options[:3] == ["root=/dev/vda1", "ro", "quiet"]
    assert options[-1] == "iommu=pt"
    ended = subprocess.run([program, "remove", "9.9.9-test"], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not list((boot / "loader/entries").iterdir())


# ------------------------------------------------------------------ in force, and what others do meanwhile


def test_a_kernel_that_came_since_and_one_that_was_made_anew_lose_the_words(layout):
    """The plugin put them into a new kernel's entry, and grubby wrote an old one anew with a word of its user's."""
    root = layout("fedora-42")
    entries = root / "boot/loader/entries"
    old, other = (entries / FEDORA).read_text(), (entries / f"{OTHER}-6.14.0-63.fc42.x86_64.conf").read_text()
    do_apply(root, direct())
    new = entries / f"{MACHINE}-6.15.0-1.fc42.x86_64.conf"
    new.write_text(old.replace("6.14.0-63", "6.15.0-1").replace(" quiet\n", " quiet iommu=pt\n"))
    (entries / FEDORA).write_text(old.replace(" quiet\n", " quiet iommu=pt nosmt\n"))
    (receipt,) = do_rollback(root)
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert new.read_text() == old.replace("6.14.0-63", "6.15.0-1")
    assert (entries / FEDORA).read_text() == old.replace(" quiet\n", " quiet nosmt\n")
    assert (entries / f"{OTHER}-6.14.0-63.fc42.x86_64.conf").read_text() == other
    assert not (root / install_plugin.PATH[1:]).exists()


def test_an_entry_for_repairs_that_was_made_from_the_running_line_is_named(layout):
    """dracut copies /proc/cmdline into the rescue entry: with our word, and it is not ours to take out."""
    root = layout("fedora-42")
    do_apply(root, direct())
    rescue = root / f"boot/loader/entries/{MACHINE}-0-rescue.conf"
    rescue.write_text(rescue.read_text().replace(" quiet\n", " quiet iommu=pt\n"))
    (receipt,) = do_rollback(root)
    assert any("0-rescue.conf has iommu=pt, and stays as it is" in line for line in receipt.unfinished)
    assert " quiet iommu=pt\n" in rescue.read_text()


def test_a_debug_kernel_of_fedoras_has_another_version_in_its_entry(layout):
    root = layout("fedora-42")
    entries = root / "boot/loader/entries"
    text = (entries / FEDORA).read_text().replace("version 6.14.0-63.fc42.x86_64", "version 6.15.0+debug-debug")
    (entries / f"{MACHINE}-6.15.0+debug.conf").write_text(text)
    before = snapshot(root)
    do_apply(root, direct())
    assert " quiet iommu=pt\n" in (entries / f"{MACHINE}-6.15.0+debug.conf").read_text()
    do_rollback(root)
    assert snapshot(root) == before


def test_an_entry_that_was_renamed_by_counting_starts_loses_the_words(layout):
    """systemd-boot renames NAME+3-0.conf to NAME+2-1.conf, and a good start takes the counter away."""
    root = layout("debian-systemd-boot")
    entries = root / "boot/efi/loader/entries"
    counted = entries / "debian-6.12.48+deb13-amd64+3-0.conf"
    before = counted.read_bytes()
    do_apply(root, direct())
    good = entries / "debian-6.12.48+deb13-amd64.conf"
    counted.rename(good)
    (receipt,) = do_rollback(root)
    assert receipt.left == ()
    assert good.read_bytes() == before
    assert not counted.exists()


def test_a_kernel_that_was_removed_is_not_brought_back(layout):
    root = layout("fedora-42")
    do_apply(root, direct())
    old = root / f"boot/loader/entries/{MACHINE}-6.13.9-200.fc42.x86_64.conf"
    old.unlink()
    (receipt,) = do_rollback(root)
    assert (receipt.outcome, receipt.left) == ("rolled back", ())
    assert not old.exists()


def test_a_kill_anywhere_leaves_all_as_it_was_or_as_it_shall_be(layout, tmp_path):
    """Recovery after a death before any of the calls that matter; every fifth of them unless the sweeps are to be exhaustive."""
    root = layout("fedora-42")
    before = snapshot(root)
    calls = count_operations(lambda observe: do_apply(root, direct(), observe=observe))
    after = managed(root)
    assert calls > 40
    for at in range(1, calls + 1, 1 if EXHAUSTIVE else 5):
        root = Path(clone(GOLDEN / "fedora-42/before", tmp_path / "root"))
        with pytest.raises(Killed):
            do_apply(root, direct(), observe=DieAt(at))
        do_recover(root)
        assert managed(root) == after or snapshot(root) == before, at


def test_a_second_word_joins_the_first_and_goes_alone(layout):
    root = layout("fedora-42")
    kernel = root / "lib/modules/6.14.0"
    kernel.mkdir(parents=True)
    (kernel / "modules.builtin.modinfo").write_bytes(b"amdgpu.parmtype=noretry:int\0")
    before = snapshot(root)
    do_apply(root, direct())
    one = (root / "boot/loader/entries" / FEDORA).read_text()
    do_apply(root, direct("amdgpu.noretry=0"))
    assert " quiet iommu=pt amdgpu.noretry=0\n" in (root / "boot/loader/entries" / FEDORA).read_text()
    do_rollback(root, everything=False)
    assert (root / "boot/loader/entries" / FEDORA).read_text() == one
    do_rollback(root)
    assert snapshot(root) == before


def test_a_passed_trial_of_grubs_becomes_permanent_in_the_entries(layout, monkeypatch):
    root = layout("fedora-42")
    before = snapshot(root)
    do_apply(root, (Step("iommu-passthrough", "system", {"stage": ("trial",)}),))
    monkeypatch.setattr(cmdline_trial, "check_passed", lambda words, look: None)
    confirm(Locations(str(root)), tables=TABLES, say=lambda _: None)
    assert (root / "boot/loader/entries" / FEDORA).read_text().count(" quiet iommu=pt\n") == 1
    assert (root / install_plugin.PATH[1:]).stat().st_mode & 0o777 == 0o755
    assert not (root / "boot/grub2/custom.cfg").exists()
    do_rollback(root)
    assert snapshot(root) == before


# ------------------------------------------------------------------ refused


def refused(root, says):
    before = snapshot(root)
    with pytest.raises(RefusedError) as caught:
        do_apply(root, direct())
    assert says in f"{caught.value.what} {caught.value.hint}"
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (" quiet\n", " quiet iommu=pt\n", "is on the kernel's line already"),
        (" quiet\n", " quiet iommu=soft\n", "would stand beside iommu=soft"),
        (" quiet\n", f" quiet {'x' * 1900}\n", "cuts it off after 2047"),
    ],
)
def test_a_line_that_cannot_take_the_word(layout, old, new, says):
    root = layout("fedora-42")
    entry = root / "boot/loader/entries" / FEDORA
    entry.write_text(entry.read_text().replace(old, new))
    refused(root, says)


def test_a_default_that_a_person_wrote_is_theirs(layout):
    """GRUB's environment block names an entry that kernel-install did not make: our words would not count there."""
    root = layout("fedora-42")
    mine = root / "boot/loader/entries/mine.conf"
    mine.write_text(ENTRY)
    block = root / "boot/grub2/grubenv"
    data = block.read_bytes().replace(f"saved_entry={FEDORA[:-5]}".encode(), b"saved_entry=mine")
    block.write_bytes(data.ljust(1024, b"#"))
    refused(root, "mine.conf, is not one that kernel-install made")


def test_without_entries_of_this_machine(layout):
    root = layout("fedora-42")
    (root / "etc/machine-id").write_text("uninitialized\n")
    refused(root, "no entry of kernel-install for this machine is there in /boot/loader/entries")


@pytest.mark.parametrize("path", ["usr/bin/sdbootutil", ""])
def test_without_a_kernel_install_that_makes_them(layout, path):
    root = layout("fedora-42")
    if path:
        (root / path).touch()
    else:
        (root / "usr/bin/kernel-install").unlink()
    refused(root, "grubby --update-kernel=ALL --args='iommu=pt'")


def test_a_plugin_that_was_edited_stays(layout):
    root = layout("fedora-42")
    plugin = root / install_plugin.PATH[1:]
    plugin.parent.mkdir(parents=True)
    plugin.write_bytes(install_plugin.text_of(("iommu=pt",)) + b"# mine\n")
    refused(root, "not as rocm-patch left it")


# ------------------------------------------------------------------ FAT


@pytest.mark.root
def test_entries_on_a_real_fat_partition(layout, tmp_path):
    """An EFI system partition has no owners, modes or attributes: what is put there has to count as what was meant."""
    maker = shutil.which("mkfs.vfat", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if maker is None:
        pytest.skip("no mkfs.vfat here")
    root = layout("debian-systemd-boot")
    place, image = root / "boot/efi", tmp_path / "esp"
    content = tmp_path / "content"
    shutil.copytree(place, content)
    with open(image, "wb") as file:
        file.truncate(40 << 20)
    subprocess.run([maker, "-F", "32", str(image)], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop,umask=0077", str(image), str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no vfat by loop device here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(content, place, dirs_exist_ok=True)
        before = snapshot(root)
        do_apply(root, direct())
        entry = place / "loader/entries/debian-6.12.48+deb13-amd64+3-0.conf"
        assert " quiet iommu=pt\n" in entry.read_text()
        assert do_apply(root, direct())[0].outcome == "already there"
        do_rollback(root)
        assert snapshot(root) == before
    finally:
        subprocess.run(["umount", str(place)], check=True)
