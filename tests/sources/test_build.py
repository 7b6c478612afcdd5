"""The flow of a build, on a small project: what it makes, what it skips, what it says when something is wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project
import shapes

from rocm_patch.errors import KnowledgeError, RefusedError, UsageError
from rocm_patch.root import Root
from rocm_patch.sources import build, build_checks, build_failures, build_plan, build_recipe, build_staged, build_work
from rocm_patch.sources.build_checks import fill, numbers

pytestmark = pytest.mark.skipif(not Path("/usr/bin/ninja").exists() or not Path("/usr/bin/cc").exists(), reason="needs cc and ninja")

RELEASE = "NAME=x\nID=%s\nID_LIKE='%s'\nPRETTY_NAME=\"Some System\"\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One build that others look at."""
    folder = tmp_path_factory.mktemp("built")
    source = project.plant(folder / "source")
    steps = []
    result = build.run(project.planned(source, folder / "cache"), progress=steps.append)
    return source, folder / "cache", result, steps


def test_the_result_is_staged_with_its_manifest(built):
    _, _, result, _ = built
    manifest = Path(result.staged, "manifest").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == result.digest
    rows = [line.split("\t") for line in manifest.decode().splitlines()]
    assert sorted((kind, path) for kind, _, _, path in rows) == [
        ("file", "lib/libsmall.so.1.0"),
        ("file", "share/words"),
        ("link", "lib/libsmall.so"),
        ("link", "lib/libsmall.so.1"),
    ]
    assert {row[3]: row[2] for row in rows}["share/words"] == hashlib.sha256(b"words\n").hexdigest()
    (proven,) = result.proven
    assert (proven.file, proven.soname, proven.loads) == ("lib/libsmall.so.1.0", "libsmall.so.1", "yes")


def test_progress_counts_to_the_end(built):
    steps = [step for step in built[3] if step.stage == "built"]
    assert [step.done for step in steps] == list(range(1, project.UNITS + 3))
    assert {step.total for step in steps} == {project.UNITS + 2}
    assert steps[-1].left == 0
    assert all(step.left > 0 for step in steps[1:-1])


def test_an_unchanged_second_build_does_nothing(built):
    source, cache, first, _ = built
    again = build.run(project.planned(source, cache), progress=lambda step: pytest.fail(f"{step} although nothing changed"))
    assert again.digest == first.digest
    assert again.reused == ("fetched", "unpacked", "patched", "configured", "built", "staged", "proven")


def test_other_jobs_build_nothing_anew(built):
    source, cache, _, _ = built
    assert build.run(project.planned(source, cache, jobs=1)).reused[-1] == "proven"


def test_the_same_again_elsewhere_is_the_same_to_the_byte(built, tmp_path):
    source, _, first, _ = built
    assert build.run(project.planned(source, tmp_path)).digest == first.digest


def test_a_changed_source_is_built_anew(tmp_path):
    source = project.plant(tmp_path / "source")
    first = build.run(project.planned(source, tmp_path))
    text = (source / "sum.c").read_text()
    (source / "sum.c").write_text(text + "int small_more(void) { return 1; }\n")
    second = build.run(project.planned(source, tmp_path))
    assert second.digest != first.digest
    assert second.reused == ()


def test_a_staged_file_that_was_changed_is_staged_anew(tmp_path):
    source = project.plant(tmp_path / "source")
    first = build.run(project.planned(source, tmp_path))
    Path(first.staged, "share/words").write_text("others\n")
    again = build.run(project.planned(source, tmp_path))
    assert again.digest == first.digest
    assert "staged" not in again.reused
    assert "built" in again.reused
    assert Path(again.staged, "share/words").read_text() == "words\n"


@pytest.mark.parametrize(
    ("lost", "kept"),
    [("source", ("fetched",)), ("build", ("fetched", "unpacked", "patched")), ("staged", ("fetched", "unpacked", "patched", "configured", "built"))],
)
def test_what_was_lost_is_made_again_with_all_that_rests_on_it(tmp_path, lost, kept):
    """Somebody frees space. Sources that are unpacked again are not patched, whatever a stamp says."""
    [(path, text)] = shapes.TREES["rocr-sdma-copy-size"]["the version is kept"].items()
    source = shapes.plant(project.plant(tmp_path / "source"), {path: text})
    plan = project.planned(source, tmp_path, patches=("rocr-sdma-copy-size",))
    first = build.run(plan)
    shutil.rmtree(Path(plan.work.folder, lost))
    again = build.run(plan)
    assert again.digest == first.digest
    assert again.reused == kept
    assert b"rocm-patch rocr-sdma-copy-size" in Path(plan.work.folder, "source", path).read_bytes()


def test_two_builds_at_once_are_refused(tmp_path):
    plan = project.planned(project.plant(tmp_path / "source"), tmp_path)
    with plan.work.locked(), pytest.raises(RefusedError, match="another build runs"):
        build.run(plan)


# ------------------------------------------------------------------ what is missing is said before anything is done

MORE = """
[[recipe.tool]]
name = "frobnicate"
commands = ["frobnicate"]
packages = { apt = "frob-apt", dnf = "frob-dnf", pacman = "frob-pacman", zypper = "frob-zypper" }
[[recipe.library]]
what = "libfrob"
pkg_config = "no-such-library-of-ours"
packages = { apt = "libfrob-dev", dnf = "libfrob-devel", pacman = "libfrob", zypper = "libfrob-devel" }
"""


@pytest.mark.parametrize(
    ("identity", "like", "command"),
    [
        ("debian", "", "sudo apt install frob-apt libfrob-dev"),
        ("pop", "ubuntu debian", "sudo apt install frob-apt libfrob-dev"),
        ("fedora", "", "sudo dnf install frob-dnf libfrob-devel"),
        ("manjaro", "arch", "sudo pacman -S --needed frob-pacman libfrob"),
        ("opensuse-tumbleweed", "opensuse suse", "sudo zypper install frob-zypper libfrob-devel"),
    ],
)
def test_missing_packages_come_with_this_distributions_command(tmp_path, identity, like, command):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text(RELEASE % (identity, like))
    plan = project.planned(project.plant(tmp_path / "source"), tmp_path, project.recipes(MORE), Root(str(tmp_path / "root")))
    assert plan.checks.install == command
    assert [miss.what for miss in plan.checks.misses] == ["not installed: frobnicate", "not installed: libfrob"]
    with pytest.raises(RefusedError, match="not installed: frobnicate"):
        build.run(plan)
    assert not Path(plan.work.folder).exists()


def test_an_unknown_distribution_gets_words(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text(RELEASE % ("nixos", ""))
    plan = project.planned(project.plant(tmp_path / "source"), tmp_path, project.recipes(MORE), Root(str(tmp_path / "root")))
    assert "Debian's names are frob-apt libfrob-dev" in plan.checks.install


def test_too_little_disk_and_memory_are_misses(tmp_path):
    source = project.plant(tmp_path / "source")
    table = project.recipes(**{"disk = 20": "disk = 900000000", "memory = 64": "memory = 900000000"})
    said = [miss.what for miss in project.planned(source, tmp_path, table).checks.misses]
    assert any("the build takes 900000000 MiB" in what for what in said)
    assert any("one job alone may take 900000000 MiB" in what for what in said)


def test_jobs_follow_memory_and_the_users_own_number_is_kept_with_a_note(tmp_path):
    source = project.plant(tmp_path / "source")
    free = project.planned(source, tmp_path).checks.memory_free
    table = project.recipes(**{"memory = 64": f"memory = {max(1, free * 9 // 10)}"})
    assert project.planned(source, tmp_path, table, jobs=0).checks.jobs == 1
    checks = project.planned(source, tmp_path, table, jobs=64).checks
    assert checks.jobs == 64
    assert "1 would be safe" in checks.notes[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_is_refused(tmp_path):
    plan = project.planned(project.plant(tmp_path / "source"), tmp_path, allow_root=False)
    with pytest.raises(RefusedError, match="as root") as refused:
        build.run(plan)
    assert "--allow-root" in refused.value.hint


@pytest.mark.parametrize(
    "more",
    [{"gpu": "rx5700"}, {"prefix": "relative"}, {"jobs": -1}, {"version": "../6"}, {"version": "9.9"}, {"source": "nowhere"}, {"patches": ("x-y",)}],
)
def test_odd_requests_are_usage_errors(tmp_path, more):
    source = more.pop("source", project.plant(tmp_path / "source"))
    with pytest.raises(UsageError):
        project.planned(source, tmp_path, **more)


def test_a_harmful_patch_is_never_built_in(tmp_path):
    source = project.plant(tmp_path / "source")
    table = project.recipes(**{'component = "rocr"': 'component = "kernel"'})
    asked = build.Request("kernel", "1.2.3", str(source), patches=("kernel-kfd-properties",), allow_root=True)
    with pytest.raises(RefusedError, match="harmful"):
        build.plan(asked, table, Root("/"), {"HOME": str(tmp_path)})


def test_a_patch_that_does_not_fit_stops_the_build(tmp_path):
    plan = project.planned(project.plant(tmp_path / "source"), tmp_path, patches=("rocr-sdma-copy-size",))
    with pytest.raises(RefusedError, match="rocr-sdma-copy-size does not fit"):
        build.run(plan)
    assert not Path(plan.work.folder, "staged").exists()


# ------------------------------------------------------------------ failures have names


def failing(tmp_path, text):
    source = project.plant(tmp_path / "source")
    (source / "unit03.c").write_text(text)
    plan = project.planned(source, tmp_path)
    with pytest.raises(build.BuildError) as failed:
        build.run(plan)
    assert not Path(plan.work.folder, "staged").exists()
    return failed.value, source


def test_a_missing_header_is_named_and_the_build_goes_on_after_it(tmp_path):
    error, source = failing(tmp_path, '#include "not_there.h"\n')
    assert error.reason.id == "header-missing"
    assert "not_there.h" in error.reason.meaning
    assert error.log in str(error)
    (source / "unit03.c").write_text("int small_3_7(int x) { return x; }\n")
    assert build.run(project.planned(source, tmp_path)).proven[0].loads == "yes"


def test_a_source_error_is_told_from_a_missing_header(tmp_path):
    assert failing(tmp_path, "int f(void) { return undeclared; }\n")[0].reason.id == "compile-error"


def test_a_hung_build_is_ended(tmp_path):
    source = project.plant(tmp_path / "source")
    (source / "configure").write_text("sleep 1000 & sleep 1000\n")
    plan = project.planned(source, tmp_path, project.recipes(silence=0))
    with pytest.raises(build.BuildError) as failed:
        build.run(plan)
    assert failed.value.reason.id == "hung"
    assert not sessions(plan.work.folder)


def test_what_is_not_exported_is_no_success(tmp_path):
    table = project.recipes(**{'symbols = ["small_sum"]': 'symbols = ["small_other"]'})
    with pytest.raises(RefusedError, match="does not export small_other"):
        build.run(project.planned(project.plant(tmp_path / "source"), tmp_path, table))


def test_device_code_that_is_not_there_is_no_success(tmp_path):
    table = project.recipes(**{"loads = true": "loads = true\ndevice_code = true"})
    with pytest.raises(RefusedError, match="holds code for no GPU, and none for gfx1010"):
        build.run(project.planned(project.plant(tmp_path / "source"), tmp_path, table))


def test_a_library_that_cannot_be_loaded_is_no_success(tmp_path):
    source = project.plant(tmp_path / "source")
    (source / "unit03.c").write_text("int missing_elsewhere(int); int small_3_7(int x) { return missing_elsewhere(x); }\n")
    with pytest.raises(RefusedError, match="cannot be loaded: .*missing_elsewhere"):
        build.run(project.planned(source, tmp_path))


# ------------------------------------------------------------------ kernels

OBJECTS = {
    'component = "rocr"': 'component = "kernel"',
    '"-C", "{build}", "-j", "{jobs}"': '"-C", "{build}", "-j", "{jobs}", "{objects}"',
    "<2": "<9",
}


def kernel(tmp_path, files, version="6.1.2"):
    """A tree in which one file of the kernel lies, and a plan to build its object."""
    source = shapes.plant(project.plant(tmp_path / "source"), files)
    asked = build.Request("kernel", version, str(source), prefix="/opt/small", patches=("kernel-noretry-gfx101x",), allow_root=True)
    return build.plan(asked, project.recipes(**OBJECTS), Root("/"), {"HOME": str(tmp_path)})


def test_a_patch_that_upstream_has_builds_nothing(tmp_path):
    """Without a target make would build the whole kernel."""
    plan = kernel(tmp_path, shapes.UPSTREAM)
    with pytest.raises(RefusedError, match=r"kernel 6\.1\.2 has kernel-noretry-gfx101x already, upstream's own: there is nothing to build"):
        build.run(plan)
    assert not Path(plan.work.folder, "build").exists()


def test_a_version_that_has_it_is_known_before_anything_is_fetched(tmp_path):
    plan = kernel(tmp_path, shapes.UPSTREAM, "7.1.8")
    with pytest.raises(RefusedError, match=r"made for kernel >=6\.1,<7\.1, this is 7\.1\.8; upstream") as refused:
        build.run(plan)
    assert "leave it out" in refused.value.hint
    assert not Path(plan.work.folder).exists()


def test_a_patched_file_becomes_a_target(tmp_path):
    plan = kernel(tmp_path, shapes.TREES["kernel-noretry-gfx101x"]["10.3"])
    with pytest.raises(build.BuildError) as failed:
        build.run(plan)
    assert "amdgpu_gmc.o'" in str(failed.value)  # ninja has no rule for it


@pytest.mark.parametrize(("release", "running"), [("6.12.9-1-lts", "6.12.9-1-lts"), ("6.1.0-37-amd64", None), ("6.120.1", None), ("6.12", "6.12")])
def test_a_configuration_of_another_series_is_not_that_of_the_kernel_that_runs(monkeypatch, release, running):
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(release=release))
    values = numbers("6.12.107")
    assert values["series"] == "6.12"
    assert values.get("running") == running


# ------------------------------------------------------------------ tables


def test_each_failure_matches_its_own_sample_first():
    for row in build_failures.load():
        assert build_failures.explain(f"[3/9] Building\n{row.sample}\nninja: build stopped", "sudo apt install x").id == row.id


def test_what_cmake_can_do_without_is_not_the_reason():
    reason = build_failures.explain("-- Could NOT find LibEdit (missing: LibEdit_LIBRARIES)\nCMake Error at x.cmake:3 (message):\n  Halted.\n", "")
    assert (reason.id, reason.lines) == ("", ("CMake Error at x.cmake:3 (message):", "  Halted."))
    reason = build_failures.explain("CMake Error at x.cmake:3 (message):\n  Could NOT find LibElf (missing: LIBELF_LIBRARIES)\n", "")
    assert (reason.id, reason.meaning) == ("package-missing", "A development package is missing: LibElf.")


@given(st.text(max_size=300))
def test_no_log_breaks_the_reading_of_it(text):
    assert build_failures.explain(text, "").meaning


def test_the_recipes_are_whole():
    assert {recipe.component for recipe in build_recipe.load()} == {"miopen", "rocr", "hip", "kernel"}
    assert build_recipe.choose("rocr", "6.4.3", build_recipe.load()).apt == "rocr-runtime"
    with pytest.raises(UsageError, match="no recipe builds rocr 4.0"):
        build_recipe.choose("rocr", "4.0", build_recipe.load())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('versions = ">=1,<2"', 'versions = "one"', "no version range"),
        ('source = "https://example.org/recipe"', 'source = "ftp://x"', "no https address"),
        ("disk = 20", "dsk = 20", "unknown key"),
        (', pacman = "dash"', "", "no packages for pacman"),
    ],
)
def test_a_bad_recipe_is_refused_by_name(old, new, complaint):
    with pytest.raises(KnowledgeError, match=complaint):
        project.recipes(**{old: new})


def test_unknown_placeholders_stay():
    assert fill("{a}/{b}", {"a": "1"}) == "1/{b}"


# ------------------------------------------------------------------ what an abrupt end may leave


def test_after_a_power_failure_the_youngest_files_go(tmp_path):
    for name, age in (("build.ninja", 900), ("old.o", 600), ("young.o", 20), ("torn.o", 0), (".ninja_log", 0)):
        (tmp_path / name).write_bytes(b"\0" * 8)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert build_work.drop_unsure(str(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ninja_log", "build.ninja", "old.o"]


def test_after_a_power_failure_a_file_from_the_future_protects_no_other(tmp_path):
    for name, age in (("old.o", 4000), ("young.o", 60), ("future.o", -9000)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert build_work.drop_unsure(str(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["old.o"]


def test_after_a_power_failure_what_was_dropped_is_built_again(tmp_path):
    source = project.plant(tmp_path / "source")
    first = build.run(project.planned(source, tmp_path / "cache"))
    planned = project.planned(source, tmp_path / "cache")
    Path(planned.work.at("session")).write_text('{"pid": 1, "boot": "another"}')
    now = time.time()
    for path in Path(planned.work.at("build")).rglob("*"):
        if path.is_file():
            os.utime(path, (now - 5000 * (path.suffix != ".o"),) * 2)
    again = build.run(planned)
    assert (again.digest, "built" in again.reused) == (first.digest, False)


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ("https://example.org/MIOpen#rocm-6.3.0", "6.3.0"),
        ("https://example.org/rocm-hipamd_6.4.3.orig.tar.gz#sha256=1.2", "6.4.3"),
        ("https://example.org/archive/rocm-5.7.1.tar.gz", "5.7.1"),
        ("https://example.org/rocr#0123456789abcdef0123456789abcdef01234567", ""),
        ("https://example.org/rocr#main", ""),
        ("apt", ""),
    ],
)
def test_a_tag_or_an_archive_tells_its_version(source, version):
    assert build_plan._told(source) == version


def test_a_branch_is_not_taken_for_the_installed_version(tmp_path):
    def misses(**more):
        plan = project.planned("https://example.org/rocr#main", tmp_path / "cache", **more)
        return [miss.what for miss in plan.checks.misses if "does not tell" in miss.what]

    assert misses(version="") == ["--source https://example.org/rocr#main does not tell which version it is"]
    assert misses(version="1.2.3") == []


def test_an_upgraded_library_is_another_machine(tmp_path):
    header = tmp_path / "one.h"
    header.write_text("")
    one = build_checks._marks([str(header), str(tmp_path / "absent")])
    os.utime(header, (1, 1))
    two = build_checks._marks([str(header)])
    assert ([path for path, *_ in one], one == two) == ([str(header)], False)


@pytest.mark.root
def test_a_cache_that_others_can_change_is_refused(tmp_path):
    folder = tmp_path / "cache/work"
    assert build_checks._stranger(str(folder)) == ""
    (tmp_path / "cache").mkdir()
    for mode, owner, bad in ((0o755, 65534, True), (0o777, 0, True), (0o1777, 0, False), (0o775, 0, False), (0o755, 0, False)):
        (tmp_path / "cache").chmod(mode)
        os.chown(tmp_path / "cache", owner, os.getegid())
        assert build_checks._stranger(str(folder)) == (str(tmp_path / "cache") if bad else "")
    os.chown(tmp_path / "cache", 0, 65534)
    (tmp_path / "cache").chmod(0o775)
    assert build_checks._stranger(str(folder)) == str(tmp_path / "cache")


def test_what_a_compiler_quotes_is_no_reason():
    log = 'x.cpp:4:1: warning: unused\n    4 | puts("No space left on device");\n      | ^\nx.cpp:1:10: fatal error: \'half.hpp\' file not found\n'
    assert build_failures.explain(log, "").id == build_failures.explain("x.cpp:1:10: fatal error: 'half.hpp' file not found", "").id != ""


def test_after_a_power_failure_a_young_plan_goes_with_all(tmp_path):
    (tmp_path / "build").mkdir()
    for name in ("build.ninja", "a.o"):
        (tmp_path / "build" / name).write_bytes(b"x")
    build_work.drop_unsure(str(tmp_path / "build"))
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../out", "../manifest/../.."])
def test_a_result_with_a_link_out_of_it_is_refused(tmp_path, target):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/link").symlink_to(target)
    with pytest.raises(RefusedError, match="lib/link"):
        build_staged.manifest_of(str(tmp_path))


def sessions(folder):
    """Processes that a build in this folder started and that still run."""
    wanted, found = f"{build_work.VARIABLE}={folder}".encode(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found
