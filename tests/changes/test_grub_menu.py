"""GRUB's menu and environment block: what is read, what is copied, and GRUB's own tools as the judges where they are installed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rocm_patch.changes import boot_loaders, custom_menu, grub_environment, grub_generate, grub_menu, image_owners, loader_entries
from rocm_patch.changes.grub_compare import compare
from rocm_patch.errors import FormatError, RefusedError
from rocm_patch.root import Root, State

GOLDEN = Path(__file__).with_name("golden") / "cmdline"
MENUS = {path.parents[3].name: path for path in sorted(GOLDEN.glob("*/before/boot/grub*/grub.cfg")) if b"menuentry '" in path.read_bytes()}
DEBIAN = MENUS["debian-12"].read_bytes()
EDITENV, CHECK = shutil.which("grub-editenv"), shutil.which("grub-script-check")
needs_editenv = pytest.mark.skipif(EDITENV is None, reason="grub-editenv is not installed (Debian: grub-common)")
needs_check = pytest.mark.skipif(CHECK is None, reason="grub-script-check is not installed (Debian: grub-common)")
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,11}", fullmatch=True)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=30)

# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("name", MENUS)
def test_entries_of_generated_menus(name):
    menu = grub_menu.parse(MENUS[name].read_bytes())
    entries = menu.every()
    assert [entry.recovery for entry in entries] == [False, False, True, False]
    assert [entry.kernel is not None for entry in entries] == [True, True, True, False]
    assert [entry.conditional for entry in entries] == [False, False, False, True]
    assert [entry.menu for entry in menu.entries] == [False, True, False]


def test_quotes_variables_and_comments_are_read_as_grub_reads_them():
    text = r"""
    menuentry 'It'\''s "one" {' --class a --unrestricted $menuentry_id_option "id \"two\"" { # a { brace
        echo 'not a menuentry {'; linux /a\ b root=${x}y "c d" # no words
    }
    if [ -z "$a" ]; then menuentry plain --id=three { true; }; fi
    """
    one, three = grub_menu.parse(text.encode()).entries
    assert (one.title, one.id, one.conditional) == ('It\'s "one" {', 'id "two"', False)
    assert one.kernel.values == ("linux", "/a b", "root=${x}y", "c d")
    assert [word.value for word in one.options] == ["--class", "a", "--unrestricted"]
    assert (three.title, three.id, three.conditional) == ("plain", "three", True)


@pytest.mark.parametrize(
    "text", ["menuentry 'a' {", "}", "menuentry {\n}", "echo 'open", '"open', "{\n}", "function f {\nmenuentry a {\n}\n}", "submenu a {\n" * 9]
)
def test_what_no_generator_writes_is_refused(text):
    with pytest.raises(FormatError):
        grub_menu.parse(text.encode())


@given(st.text(st.sampled_from("menuentry {}\n;'\"\\$#ab "), max_size=60))
def test_only_format_errors_leave_the_parser(text):
    with contextlib.suppress(FormatError):
        assert grub_menu.parse(text.encode()).text == text


# ------------------------------------------------------------------ the default


@pytest.mark.parametrize(
    ("default", "title"),
    [
        ("0", "Debian GNU/Linux"),
        ("Debian GNU/Linux", "Debian GNU/Linux"),
        ("1>1", "Debian GNU/Linux, with Linux 6.1.0-9-amd64 (recovery mode)"),
        ("gnulinux-advanced-U>gnulinux-6.1.0-9-amd64-advanced-U", "Debian GNU/Linux, with Linux 6.1.0-9-amd64"),
        ("Advanced options for Debian GNU/Linux>0", "Debian GNU/Linux, with Linux 6.1.0-9-amd64"),
        ("${saved_entry}", "Debian GNU/Linux, with Linux 6.1.0-9-amd64"),
    ],
)
def test_the_default_entry_is_found_as_grub_finds_it(default, title):
    text = DEBIAN.decode().replace('set default="0"', f'set default="{default}"').replace("0b1c2d3e-0000-4000-8000-00000000c0de", "U")
    assert grub_menu.default_entry(grub_menu.parse(text.encode()), {"saved_entry": "1>0"}).title == title


@pytest.mark.parametrize("default", ["1", "7", "nobody", "1>9", "0>0", "2", "${other}"])
def test_a_default_that_cannot_be_told_is_no_guess(default):
    text = DEBIAN.decode().replace('set default="0"', f'set default="{default}"')
    with pytest.raises(FormatError):
        grub_menu.default_entry(grub_menu.parse(text.encode()), {})


def test_a_saved_choice_that_is_empty_is_the_first_entry():
    menu = grub_menu.parse(DEBIAN.replace(b'set default="0"', b'set default="${saved_entry}"'))
    assert grub_menu.default_entry(menu, {"saved_entry": ""}) is menu.entries[0]


# ------------------------------------------------------------------ copies


def test_a_copy_with_another_initramfs_differs_in_that_alone():
    menu = grub_menu.parse(DEBIAN)
    copied = grub_menu.parse(grub_menu.clone(menu, menu.entries[0], "Old image", "old", initrd="initrd.img.old").encode()).entries[0]
    original = [command.values for command in menu.entries[0].commands]
    assert [command.values for command in copied.commands] == [*original[:-1], ("initrd", "/boot/initrd.img.old")]


def test_an_early_image_stays_before_the_exchanged_one():
    menu = grub_menu.parse(DEBIAN.replace(b"\tinitrd\t/boot/", b"\tinitrd\t/boot/intel-ucode.img /boot/"))
    copied = grub_menu.parse(grub_menu.clone(menu, menu.entries[0], "Old image", "old", initrd="i.old").encode()).entries[0]
    assert copied.commands[-1].values == ("initrd", "/boot/intel-ucode.img", "/boot/i.old")


@pytest.mark.parametrize("title", ["it's", "two\nlines", "\x1b[31m"])
def test_a_title_that_could_be_more_than_a_title_is_never_written(title):
    menu = grub_menu.parse(DEBIAN)
    with pytest.raises(FormatError):
        grub_menu.clone(menu, menu.entries[0], title, "old")


@needs_check
@pytest.mark.parametrize("name", MENUS)
def test_grubs_own_parser_accepts_our_copies(name):
    menu = grub_menu.parse(MENUS[name].read_bytes())
    for entry in menu.every():
        if entry.kernel:
            text = grub_menu.clone(menu, entry, "A copy", "a-copy", words=["iommu=pt", "amdgpu.noretry=0"], initrd="old.img", once=True)
            ended = subprocess.run([CHECK], input=custom_menu.with_entry(None, "a-copy", text), capture_output=True, check=False)
            assert (ended.returncode, ended.stderr) == (0, b"")


def test_our_menu_file_is_read_back_and_nobody_elses():
    data = custom_menu.with_entry(custom_menu.with_entry(None, "b", "menuentry b {\n}\n"), "a", "menuentry a {\n}\n")
    assert list(custom_menu.parse(data)) == ["a", "b"]
    assert custom_menu.without_entry(custom_menu.without_entry(data, "a"), "b") is None
    for foreign in (b"", b"menuentry c {\n}\n", data + b"menuentry c {\n}\n", data.replace(b"end", b"End", 1), b"\xff"):
        with pytest.raises(FormatError):
            custom_menu.parse(foreign)


# ------------------------------------------------------------------ loader entries

BLS = "title Fedora\nversion 6\nlinux /vmlinuz-6\ninitrd /a.img /b.img $tuned_initrd\noptions root=UUID=1 ro $tuned_params\noptions quiet\n"


def test_a_loader_entry_becomes_what_grub_makes_of_it():
    (entry,) = grub_menu.parse(loader_entries.as_script(BLS, "id-6").encode()).entries
    assert entry.kernel.values == ("linux", "($root)/vmlinuz-6", "root=UUID=1", "ro", "$tuned_params", "quiet")
    assert entry.commands[-1].values == ("initrd", "($root)/a.img", "($root)/b.img")


@pytest.mark.parametrize(
    ("old", "new"),
    [("quiet", "quiet; reboot"), ("quiet", "q'"), ("quiet", "{"), ("/vmlinuz-6", "/vm linuz"), ("linux /vmlinuz-6\n", ""), ("/a.img", "(hd1)/a")],
)
def test_a_loader_entry_that_a_script_would_read_otherwise_is_not_copied(old, new):
    with pytest.raises(FormatError):
        loader_entries.as_script(BLS.replace(old, new), "id-6")


# ------------------------------------------------------------------ the environment block


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_a_block_comes_back_byte_for_byte(values):
    block = grub_environment.Block((b"# a remark",), 1024)
    for name, value in values.items():
        block = block.with_value(name, value)
    data = grub_environment.render(block)
    assert len(data) == 1024
    assert grub_environment.parse(data).values() == values
    assert grub_environment.render(grub_environment.parse(data)) == data


@needs_editenv
def test_grubs_own_tool_writes_and_reads_the_same(tmp_path):
    path = tmp_path / "grubenv"
    subprocess.run([EDITENV, path, "create"], check=True)
    block = grub_environment.parse(path.read_bytes())
    for name, value in (("saved_entry", "a>b"), ("x", r"back\slash"), ("next_entry", "rocm-patch-trial"), ("saved_entry", "changed")):
        subprocess.run([EDITENV, path, "set", f"{name}={value}"], check=True)
        block = block.with_value(name, value)
        assert grub_environment.render(block) == path.read_bytes()
    listed = subprocess.run([EDITENV, path, "list"], capture_output=True, text=True, check=True).stdout
    assert listed.splitlines() == ["saved_entry=changed", r"x=back\slash", "next_entry=rocm-patch-trial"]
    subprocess.run([EDITENV, path, "unset", "next_entry"], check=True)
    assert grub_environment.render(block.with_value("next_entry", None)) == path.read_bytes()


def test_a_full_block_and_what_is_no_block_are_refused():
    block = grub_environment.Block((), 64)
    with pytest.raises(FormatError, match="too little"):
        block.with_value("x", "y" * 40)
    for data in (b"", b"x=y\n", grub_environment.SIGNATURE + b"x=y", grub_environment.SIGNATURE + b"x=y\n##\0#"):
        with pytest.raises(FormatError):
            grub_environment.parse(data)


# ------------------------------------------------------------------ B3: by our words alone


def new_menu(old=" quiet\n", new=" quiet iommu=pt\n", data=DEBIAN):
    return data.replace(old.encode(), new.encode())


def test_our_words_on_the_lines_that_are_meant_are_no_other_difference():
    found = compare(DEBIAN, new_menu(), ["iommu=pt"], "update-grub")
    assert len(found.titles) == 2
    assert [title for title in found.without if "recovery" in title] == list(found.without)
    assert compare(new_menu(), DEBIAN, ["iommu=pt"], "update-grub").titles == ()  # on the way back


def test_a_word_before_what_a_script_puts_at_the_end_is_ours_all_the_same():
    data = MENUS["ubuntu-24.04"].read_bytes()
    assert len(compare(data, new_menu(" splash $vt_handoff", " splash iommu=pt $vt_handoff", data), ["iommu=pt"], "").titles) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" quiet\n", " iommu=pt\n"),
        (" quiet\n", " quiet iommu=pt iommu=pt\n"),
        (" quiet\n", " quiet iommu=pt single\n"),
        ("vmlinuz-6.1.0-9-amd64 root", "vmlinuz-6.1.0-10-amd64 root"),
        ("set timeout=5", "set timeout=0"),
        (" single\n", " single iommu=pt\n"),
        ("insmod gzio\n", "insmod gzio\n\tinsmod lvm\n"),
        ("source $prefix/custom.cfg", "true"),
    ],
)
def test_any_other_difference_stops_it_and_is_shown(old, new):
    changed = new_menu(old, new, new_menu() if "quiet" not in old else DEBIAN)
    assert changed != DEBIAN
    with pytest.raises(RefusedError) as caught:
        compare(DEBIAN, changed, ["iommu=pt"], "update-grub")
    assert new.strip().splitlines()[-1].strip().removesuffix(" iommu=pt") in caught.value.what
    assert "update-grub" in caught.value.hint


def test_a_file_of_empty_lines_costs_no_more_than_its_length(tmp_path):
    """A pattern that began with `^\\s*` took the square of it: minutes, as root, for a file that anybody's backup may leave."""
    empty = "\n" * 200_000
    for path, text in (("boot/grub/grub.cfg", empty), ("etc/kernel/install.conf", empty)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    start = time.process_time()
    assert boot_loaders.recognise(Root(str(tmp_path))).name.startswith("grub")
    assert image_owners.refusal(Root(str(tmp_path)), "options amdgpu x=1") is None
    block = State("file", 0o644, 0, 0, b"")
    menu = "save_env next_entry custom.cfg" + empty
    assert boot_loaders.environment_problem(menu.encode(), empty, block, "") == ""
    with pytest.raises(FormatError, match="sets its default 0 times"):
        grub_menu.default_entry(grub_menu.parse(empty.encode()), {})
    assert "LANG" not in grub_generate._speaking(empty.encode())
    assert time.process_time() - start < 5  # seconds; it was more than a minute for each


def test_lines_that_end_as_windows_ends_them_set_a_default_all_the_same():
    menu = grub_menu.parse(b"set default=\"0\"\r\nmenuentry 'a' {\n\tlinux /vmlinuz\n}\n")
    assert grub_menu.default_entry(menu, {}).title == "a"
