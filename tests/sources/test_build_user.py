"""`rocm-patch build` as people meet it: from the command line, without rights, on a machine where something is wrong.

Each time: the exit code, what happened and what to do, nothing half-installed, and after the mending the same command ends well.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project
import build_user
from build_user import ROOT, USER, digest, ended, left, make
from shapes import TREES
from test_build_fetch import packed, server

__all__ = ["server"]
pytestmark = pytest.mark.skipif(
    not all(Path("/usr/bin", name).exists() for name in ("ninja", "cc", "setpriv", "unshare")), reason="needs cc, ninja, setpriv and unshare"
)
needs_root = pytest.mark.skipif(not ROOT, reason="mounts, or makes files of another user")
BIG = f"int table[] = {{{','.join(map(str, range(1_200_000)))}}}; int small_3_7(int x) {{ return table[x]; }}\n"
KILLS = 20 if os.environ.get("ROCM_PATCH_EXHAUSTIVE") == "1" else 5


@pytest.fixture(scope="module")
def interpreter():
    """Whether all this can be tried at all is looked up once."""
    base = Path(tempfile.mkdtemp(prefix="rocm-patch-test-", dir="/var/tmp"))
    try:
        yield make(base)
    finally:
        shutil.rmtree(base)


@pytest.fixture
def site(interpreter):
    """A home of its own, which the user can reach: pytest's own folders are root's."""
    base = Path(tempfile.mkdtemp(prefix="rocm-patch-test-", dir="/var/tmp"))
    try:
        base.chmod(0o755)
        (base / "site").symlink_to(interpreter.base / "site")
        (base / "home").mkdir()
        place = build_user.Site(base, interpreter.python, interpreter.packages)
        place.own(base / "home")
        yield place
    finally:
        shutil.rmtree(base)


@pytest.fixture
def source(site):
    return project.plant(site.base / "source")


@pytest.fixture(scope="module")
def right(interpreter):
    """The digest of what an undisturbed build makes."""
    source = project.plant(interpreter.base / "source")
    return digest(interpreter.build(source))


# ------------------------------------------------------------------ where it comes from


def test_a_wrong_checksum(site, source, right):
    archive, value = packed(source, site.base / "small.tar.gz")
    other = value[:-1] + ("0" if value[-1] != "0" else "1")
    seen = site.build(f"{archive}#sha256={other}")
    assert seen.code == 5
    assert f"wrong checksum: SHA-256 is {value}, {other} was expected" in seen.err
    assert "fetch it again" in seen.err
    assert not (site.folder / "source").exists()
    shutil.rmtree(site.folder)
    assert digest(site.build(f"{archive}#sha256={value}")) == right


def test_a_download_that_breaks_off_goes_on(site, source, server, right):
    archive, value = packed(source, site.base / "small.tar.gz")
    server.data, server.cut = archive.read_bytes(), 100
    seen = site.build(f"{server.address}#sha256={value}")
    assert seen.code == 1
    assert "cannot be fetched: the connection broke off" in seen.err
    assert "it goes on from there" in seen.err
    assert [path.name for path in (site.folder / "archive").iterdir()] == ["release.part"]
    assert digest(site.build(f"{server.address}#sha256={value}")) == right
    assert server.asked == [0, 100]


def test_a_download_that_was_killed_after_its_last_byte_is_not_asked_for_again(site, source, server, right):
    archive, value = packed(source, site.base / "small.tar.gz")
    server.data, server.cut = archive.read_bytes(), 100
    assert site.build(f"{server.address}#sha256={value}").code == 1
    (site.folder / "archive/release.part").write_bytes(archive.read_bytes())
    assert digest(site.build(f"{server.address}#sha256={value}")) == right
    assert server.asked == [0]


def test_an_archive_that_writes_elsewhere(site, source):
    archive = site.base / "small.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, "small-1.2.3")
        info = tarfile.TarInfo("small-1.2.3/lib")
        info.type, info.linkname = tarfile.SYMTYPE, str(site.base / "home")
        tar.addfile(info)
        info = tarfile.TarInfo("small-1.2.3/lib/.profile")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    seen = site.build(archive)
    assert seen.code == 3
    assert "the link 'small-1.2.3/lib' leads outside" in seen.err
    assert not (site.base / "home/.profile").exists()
    assert not (site.folder / "source").exists()


def test_a_link_out_of_a_source_folder(site, source, right):
    (source / "keys").symlink_to(site.base / "home")
    seen = site.build(source)
    assert seen.code == 5
    assert f"the link {source}/keys leads out of the sources" in seen.err
    assert "build from a folder without it" in seen.err
    (source / "keys").unlink()
    assert digest(site.build(source)) == right


@pytest.mark.root
@needs_root
def test_sources_of_another_user(site, source, right):
    (source / "part").mkdir(mode=0o700)
    (source / "part/of_it.h").write_text("\n")
    seen = site.build(source)
    assert seen.code == 5
    assert f"{source}/part cannot be read by this user" in seen.err
    (source / "part").chmod(0o755)
    (source / "part/of_it.h").chmod(0o600)
    seen = site.build(source)
    assert seen.code == 5
    assert f"{source}/part/of_it.h cannot be read by this user" in seen.err
    assert not site.staged()
    shutil.rmtree(source / "part")
    assert digest(site.build(source)) == right


@pytest.mark.root
@needs_root
def test_a_tree_of_another_user_is_not_patched(site, source):
    [(path, text)] = TREES["rocr-sdma-copy-size"]["the version is kept"].items()
    (source / path).parent.mkdir(parents=True, exist_ok=True)
    (source / path).write_text(text)
    command = site.command("patches", "apply", "rocr-sdma-copy-size", "--source", source)
    seen = ended(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=site.environment(), cwd="/"))
    assert seen.code == 5
    assert f"{path} cannot be written: Permission denied" in seen.err
    assert "the folder must be yours" in seen.err
    assert (source / path).read_text() == text
    assert [name.name for name in (source / path).parent.iterdir()] == [Path(path).name]


def test_a_source_path_with_blanks_and_letters_of_all_kinds(site, source, right):
    odd = site.base / 'sources of Zoë\'s $HOME; "7" 語'
    source.rename(odd)
    assert digest(site.build(odd)) == right


# ------------------------------------------------------------------ where it lies


@pytest.mark.skipif(ROOT and USER == 0, reason="root can write everywhere")
def test_a_cache_that_cannot_be_written(site, source, right):
    cache = site.base / "cache"
    cache.mkdir(mode=0o555)
    seen = site.build(source, more={"XDG_CACHE_HOME": str(cache)})
    assert seen.code == 5
    assert f"{cache} is no folder that this user can write" in seen.out
    assert "set XDG_CACHE_HOME to a folder of yours elsewhere" in seen.out
    assert not list(cache.iterdir())
    assert digest(site.build(source)) == right


@pytest.mark.parametrize("home", ["unset", "", "relative"])
def test_no_home(site, source, home):
    seen = site.build(source, more={"HOME": home})
    assert seen.code == 5
    assert "neither HOME nor XDG_CACHE_HOME names a folder" in seen.err


def test_a_home_that_is_not_there_or_is_a_file(site, source):
    for home in ("/nonexistent", str(source / "sum.c")):
        seen = site.build(source, more={"HOME": home})
        assert seen.code == 5
        assert "is no folder that this user can write" in seen.out


@pytest.mark.parametrize(
    ("name", "complaint"), [("a b", "do not bear blanks"), ("a$b", "do not bear $"), ("a:b", "do not bear :"), ("a\nb", "cannot be printed")]
)
def test_a_cache_whose_name_make_would_not_bear(site, source, name, complaint):
    seen = site.build(source, more={"XDG_CACHE_HOME": str(site.base / "home" / name)})
    assert seen.code == 5
    assert complaint in seen.out.replace("\\n", " ")
    assert not (site.base / "home" / name).exists()


def test_a_cache_with_letters_of_all_kinds(site, source, right):
    assert digest(site.build(source, more={"XDG_CACHE_HOME": str(site.base / "home/Zoë語")})) == right


@pytest.mark.root
@needs_root
def test_a_full_tmp_is_not_needed(site, source, right):
    """The compiler writes its assembly there unless it is told of a better place."""
    kept = site.base / "packages"
    kept.mkdir()
    place = build_user.Site(site.base, site.python, (str(kept),))
    full = f"mount --bind {site.packages[0]} {kept}; mount -t tmpfs -o size=4k none /tmp; cat /dev/zero > /tmp/full 2>/dev/null || :"
    if subprocess.run(["unshare", "--mount", "sh", "-ec", f"{full}; ! echo more > /tmp/more"], check=False, capture_output=True).returncode:
        pytest.skip("no right to mount here")
    (source / "unit01.c").write_text((source / "unit01.c").read_text() + f'const char *where = "{"x" * 20_000}";\n')
    seen = place.build(source, setup=full)
    assert digest(seen) != right


@pytest.mark.root
@needs_root
def test_a_disk_that_is_full_anywhere(site, source, right):
    small, sizes, full = site.base / "small", [60, 120, 200, 20_000], 0
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=1777,size={sizes[0]}k", "none", small], check=False).returncode:
        pytest.skip("no right to mount here")
    more = {"XDG_CACHE_HOME": str(small), "TEST_CHANGES": "{'disk = 20': 'disk = 0'}"}
    try:
        for size in sizes:
            subprocess.run(["mount", "-o", f"remount,size={size}k", small], check=True)
            seen = site.build(source, more=more)
            if seen.code == 0:
                break
            assert seen.code == 1
            assert "The disk is full." in seen.err
            assert "the same command goes on from there" in seen.err
            assert not list(small.glob("rocm-patch/builds/*/staged"))
            full += 1
        assert digest(seen) == right
        assert full >= 2, "the sizes are too large to test anything"
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.root
@needs_root
def test_a_file_system_that_is_read_only(site, source):
    """As ext4 turns after an error."""
    cache = site.base / "home/.cache"
    cache.mkdir()
    site.own(cache)
    seen = site.build(source, setup=f"mount -t tmpfs -o mode=1777 none {cache}; mount -o remount,ro {cache}")
    assert seen.code == 5
    assert f"{cache} is no folder that this user can write" in seen.out


# ------------------------------------------------------------------ what it needs


@pytest.mark.root
@needs_root
def test_a_tool_that_is_not_there(site, source, right):
    seen = site.build(source, setup="mount --bind /dev/null $(readlink -f /usr/bin/ninja)")
    assert seen.code == 5
    assert "[to do] not installed: ninja: " in seen.out
    assert "all missing packages: " in seen.out
    assert "ninja" in seen.out.partition("all missing packages: ")[2]
    assert not (site.base / "home/.cache").exists()
    assert digest(site.build(source)) == right


def test_a_header_that_is_not_there(site, source, right):
    names = '{ apt = "libfrob-dev", dnf = "libfrob-dev", pacman = "libfrob-dev", zypper = "libfrob-dev" }'
    more = {"TEST_MORE": f'[[recipe.library]]\nwhat = "libfrob"\nfiles = ["{site.base}/frob.h"]\npackages = {names}\n'}
    seen = site.build(source, more=more)
    assert seen.code == 5
    assert "[to do] not installed: libfrob: " in seen.out
    assert "libfrob-dev" in seen.out
    (site.base / "frob.h").touch()
    assert digest(site.build(source, more=more)) == right


def mended(site, source, right):
    """The same command after the mending."""
    assert not site.staged()
    (source / "unit03.c").write_text((site.base / "unit03.c").read_text())
    assert digest(site.build(source)) == right


def test_a_limit_on_each_process(site, source, right):
    shutil.copy(source / "unit03.c", site.base)
    (source / "unit03.c").write_text(BIG)
    seen = site.build(source, before=lambda: resource.setrlimit(resource.RLIMIT_AS, (220 << 20, 220 << 20)))
    assert seen.code == 1
    assert "The compiler got no more memory." in seen.err
    assert "--jobs 1" in seen.err
    assert "log/built.log" in seen.err
    mended(site, source, right)


def test_a_limit_that_is_too_low_from_the_start(site, source):
    more = {"TEST_CHANGES": "{'memory = 64': 'memory = 3000'}"}
    seen = site.build(source, more=more, before=lambda: resource.setrlimit(resource.RLIMIT_AS, (1000 << 20, 1000 << 20)))
    assert seen.code == 5
    assert "a limit of 1000 MiB lies on each process; a compiler may take 3000 MiB" in seen.out
    assert "ulimit -v unlimited" in seen.out


@pytest.fixture
def group():
    """A control group of 130 MiB, of whichever version this machine has."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    base, names = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    folder = base / f"rocm-patch-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / names).write_text(str(130 << 20))
    except OSError:
        if folder.exists():
            folder.rmdir()
        pytest.skip("no right to make a control group with a limit on memory here")
    yield folder
    for _ in range(100):
        try:
            folder.rmdir()
            break
        except OSError:
            time.sleep(0.05)


@pytest.mark.root
@needs_root
def test_a_control_group_kills_the_compiler_and_not_the_build(site, source, right, group):
    def enter():
        (group / "cgroup.procs").write_text(str(os.getpid()))

    shutil.copy(source / "unit03.c", site.base)
    (source / "unit03.c").write_text(BIG)
    seen = site.build(source, before=enter, more={"TEST_CHANGES": "{'memory = 64': 'memory = 1'}"})
    assert seen.code == 1, seen
    assert "The compiler got no more memory." in seen.err
    assert "--jobs 1" in seen.err
    free = int(seen.out.partition("jobs, ")[2].split()[0])
    assert free <= 130
    mended(site, source, right)


@pytest.mark.root
@needs_root
def test_a_control_group_that_is_too_small_from_the_start(site, source, group):
    def enter():
        (group / "cgroup.procs").write_text(str(os.getpid()))

    seen = site.build(source, before=enter, more={"TEST_CHANGES": "{'memory = 64': 'memory = 500'}"})
    assert seen.code == 5
    assert "one job alone may take 500 MiB" in seen.out
    assert not (site.base / "home/.cache").exists()


# ------------------------------------------------------------------ how it ends


def test_ctrl_c(site, source, right):
    (source / "configure").write_text("touch $2/here; sleep 987651\n")
    child = site.start(source, before=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for_stage(site, child)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal sends it: to all of the group
    seen = ended(child)
    assert seen.code == 130
    assert "interrupted: nothing is installed, what was built stays, and the same command goes on from there" in seen.err
    assert not left("sleep 987651")
    assert not site.staged()
    (source / "configure").write_text(project.CONFIGURE)
    assert digest(site.build(source)) == right


def wait_for_stage(site, child):
    deadline = time.monotonic() + 60
    while not list(site.cache.glob("rocr-*/build/here")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_children_that_stay_are_ended_before_the_next_stage(site, source, right):
    """One holds the pipe, one has neither pipe nor environment and does not end when told."""
    stay = "sleep 987652 & env -i sh -c 'trap \"\" TERM; sleep 987653; :' > /dev/null 2>&1 &\n"
    (source / "configure").write_text(stay + project.CONFIGURE)
    assert digest(site.build(source)) != ""
    assert not left("sleep 98765")


def test_two_at_once(site, source, right):
    (source / "configure").write_text("touch $2/here; while [ ! -e $2/go ]; do sleep 0.05; done\n" + project.CONFIGURE)
    first = site.start(source)
    wait_for_stage(site, first)
    second = site.build(source)
    assert second.code == 5
    assert f"another build runs in {site.folder}" in second.err
    assert "wait for it, or end it: it goes on from there" in second.err
    other = project.plant(site.base / "other")
    elsewhere = site.build(other)  # the same cache, another source: they have nothing in common
    assert digest(elsewhere) == right
    next(site.cache.glob("rocr-*/build/here")).with_name("go").touch()
    assert ended(first).code == 0


@pytest.mark.slow
def test_killed_at_random_points(site, source, right):
    """ROCM_PATCH_EXHAUSTIVE=1: at twenty, half a minute. Through the verb, as the user; and one start in three is killed again on the way."""
    seed = int(os.environ.get("ROCM_PATCH_TEST_SEED", random.randrange(1 << 30)))
    chance, kills = random.Random(seed), 0
    began = time.monotonic()
    assert digest(site.build(source)) == right
    whole = time.monotonic() - began
    while kills < KILLS:
        shutil.rmtree(site.cache)
        child = None
        while kills < KILLS and (child is None or chance.random() < 0.33):
            child = site.start(source)
            try:
                child.wait(chance.uniform(0.25, whole))
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.communicate()
        assert digest(site.build(source)) == right, f"seed {seed}"
        assert not left(str(site.folder)), f"seed {seed}"


def test_what_is_staged_is_the_users_and_whole(site, source, right):
    seen = site.build(source)
    manifest = (site.folder / "staged/manifest").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest(seen) == right
    assert {path.stat().st_uid for path in site.folder.rglob("*")} == {USER if ROOT else os.getuid()}
    assert site.folder.stat().st_mode & 0o077 == 0
