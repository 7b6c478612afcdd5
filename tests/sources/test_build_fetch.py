"""Where sources come from: digests, archives that mean harm, a server that breaks off, a repository."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import build_project as project

from rocm_patch.errors import FormatError, RefusedError, RocmPatchError, UsageError
from rocm_patch.root import Root
from rocm_patch.sources import build, fetch
from rocm_patch.sources.build_work import Work
from rocm_patch.sources.unpack import unpack

needs_compiler = pytest.mark.skipif(not Path("/usr/bin/ninja").exists() or not Path("/usr/bin/cc").exists(), reason="needs cc and ninja")
needs_git = pytest.mark.skipif(not Path("/usr/bin/git").exists(), reason="needs git")


STAGES = ("fetched", "unpacked", "patched", "configured", "built", "staged", "proven")


def packed(source: Path, archive: Path) -> tuple[Path, str]:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "small-1.2.3")
    return archive, hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path):
    """Serves bytes; `cut` breaks the first answer off after so many of them; ranges are honoured."""

    class Handler(http.server.BaseHTTPRequestHandler):
        data, cut, asked = b"", 0, []

        def do_GET(self):
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            type(self).asked.append(start)
            body = self.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.cut] if self.cut else body)
            type(self).cut = 0
            self.close_connection = True

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    Handler.address = f"http://127.0.0.1:{server.server_port}/small.tar.gz"
    Handler.asked = []
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


@needs_compiler
def test_an_archive_and_a_folder_give_the_same(tmp_path):
    source = project.plant(tmp_path / "source")
    archive, digest = packed(source, tmp_path / "small.tar.gz")
    one = build.run(project.planned(source, tmp_path / "a"))
    two = build.run(project.planned(f"{archive}#sha256={digest}", tmp_path / "b"))
    assert one.digest == two.digest


def test_a_download_of_other_bytes_is_refused_and_thrown_away(tmp_path, server):
    archive, digest = packed(project.plant(tmp_path / "source"), tmp_path / "small.tar.gz")
    server.data = archive.read_bytes() + b"x"
    plan = project.planned(f"{server.address}#sha256={digest}", tmp_path)
    Path(plan.work.folder).mkdir(parents=True)
    with pytest.raises(RefusedError, match="wrong checksum"):
        fetch.fetch(plan.origin, plan.work, lambda _: None)
    server.data = archive.read_bytes()
    assert fetch.fetch(plan.origin, plan.work, lambda _: None) == digest
    assert server.asked == [0, 0]


def test_an_address_without_a_digest_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="goes with its digest"):
        project.planned("https://example.org/x.tar.gz", tmp_path)


class Repository:
    """A repository of our own."""

    def __init__(self, folder):
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("one")

    def git(self, *words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, words):
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", words)


@needs_git
def test_a_commit_is_fetched_by_its_name(tmp_path):
    source = project.plant(tmp_path / "source")
    git = Repository(source).git
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    plan = project.planned(f"git+file://{source}#v1", tmp_path / "cache")
    Path(plan.work.folder).mkdir(parents=True)
    assert fetch.fetch(plan.origin, plan.work, lambda _: None) == commit
    fetch.place(plan.origin, plan.work, lambda _: None)
    assert Path(plan.work.folder, "source/sum.c").read_bytes() == (source / "sum.c").read_bytes()
    assert not Path(plan.work.folder, "source/.git").exists()
    other = project.planned(f"git+file://{source}#v9", tmp_path / "cache")
    Path(other.work.folder).mkdir(parents=True)
    with pytest.raises(RocmPatchError) as failed:
        fetch.fetch(other.origin, other.work, lambda _: None)
    assert "no such tag" in failed.value.hint


@needs_git
@needs_compiler
def test_a_branch_that_moved_is_fetched_anew(tmp_path):
    repository = Repository(project.plant(tmp_path / "source"))
    address = f"git+file://{repository.folder}#main"
    first = build.run(project.planned(address, tmp_path))
    assert build.run(project.planned(address, tmp_path)).reused == STAGES
    (repository.folder / "sum.c").write_text((repository.folder / "sum.c").read_text() + "int small_more(void) { return 1; }\n")
    repository.commit("two")
    second = build.run(project.planned(address, tmp_path))
    assert (second.reused, second.digest == first.digest) == ((), False)
    repository.folder.rename(tmp_path / "away")
    said = []
    assert build.run(project.planned(address, tmp_path), said.append).reused == STAGES
    assert [line for line in said if "what was fetched is taken" in line]


@needs_git
@pytest.mark.parametrize("mark", ["", "v1"])
def test_what_a_reference_names_now_tells_sources_apart(tmp_path, mark):
    repository = Repository(project.plant(tmp_path / "source"))
    repository.git("tag", "v1")
    work = Work(str(tmp_path))
    asked = fetch.Origin("git", str(repository.folder), mark)
    before = fetch.identity(asked, work, pytest.fail)
    assert fetch.identity(asked, work, pytest.fail) == before
    (repository.folder / "more.c").write_text("")
    repository.commit("two")
    repository.git("tag", "--force", "v1")
    assert fetch.identity(asked, work, pytest.fail) != before


@needs_git
def test_a_commit_needs_no_asking(tmp_path):
    """Its name tells the content: a build in a train goes on."""
    assert fetch.identity(fetch.Origin("git", "file:///no/such/repository", "a" * 40), Work(str(tmp_path)), pytest.fail)


@needs_git
def test_settings_that_a_repository_holds_are_not_read(tmp_path):
    """In a checkout that was git's home, its .gitconfig told git to write into any file of the user."""
    repository = Repository(project.plant(tmp_path / "source"))
    (repository.folder / ".gitconfig").write_text(f"[trace2]\n\tnormalTarget = {tmp_path}/written\n")
    (repository.folder / ".config/git").mkdir(parents=True)
    (repository.folder / ".config/git/config").write_text(f"[trace2]\n\teventTarget = {tmp_path}/written\n")
    repository.commit("two")
    fetch.fetch(fetch.Origin("git", str(repository.folder), "main"), Work(str(tmp_path / "work")), lambda _: None)
    assert (tmp_path / "work/archive/git/.gitconfig").exists()
    assert not (tmp_path / "written").exists()


@needs_git
def test_an_address_that_is_an_option_of_git_is_refused(tmp_path):
    option = f"--upload-pack=touch {tmp_path}/written;"
    with pytest.raises(UsageError, match="no repository has such an address"):
        project.planned(f"git+{option}#x", tmp_path)
    for mark in ("x", ""):
        with pytest.raises(RocmPatchError, match="strange pathname"):
            fetch.fetch(fetch.Origin("git", option, mark), Work(str(tmp_path / "work")), lambda _: None)
        fetch.identity(fetch.Origin("git", option, mark), Work(str(tmp_path / "work")), pytest.fail)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "place", ["https://[bad/x.tar", "https://a b/x.tar", "http://h:port/x.tar", "http:///x.tar", "http://ä/x.tar", "http://h/\n.tar"]
)
def test_an_address_that_is_none_is_a_usage_error(tmp_path, place):
    with pytest.raises(UsageError, match="no address that can be fetched"):
        project.planned(f"{place}#sha256={'0' * 64}", tmp_path)


def test_a_host_that_cannot_be_is_said(tmp_path):
    plan = project.planned(f"http://{'a' * 70}.example/x.tar#sha256={'0' * 64}", tmp_path)
    with pytest.raises(RocmPatchError, match="cannot be fetched"):
        fetch.fetch(plan.origin, plan.work, lambda _: None)


def test_what_keeps_size_and_date_is_another_folder(tmp_path):
    source = project.plant(tmp_path / "source")
    for name in ("one", "two"):
        (source / name).mkdir()
    (source / "folder").symlink_to("one")
    asked, work = fetch.Origin("folder", str(source)), Work(str(tmp_path))
    seen = [fetch.identity(asked, work, pytest.fail)]
    path, about = source / "sum.c", (source / "sum.c").stat()
    path.write_bytes(path.read_bytes().replace(b"x", b"y"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    seen.append(fetch.identity(asked, work, pytest.fail))
    path.chmod(0o755)
    seen.append(fetch.identity(asked, work, pytest.fail))
    (source / "folder").unlink()
    (source / "folder").symlink_to("two")
    seen.append(fetch.identity(asked, work, pytest.fail))
    assert len(set(seen)) == len(seen)
    assert fetch.identity(asked, work, pytest.fail) == seen[-1]


def test_what_was_compared_with_the_digest_is_what_is_unpacked(tmp_path):
    """The archive is another one by the time it is unpacked, as after an interruption."""
    source = project.plant(tmp_path / "source")
    archive, digest = packed(source, tmp_path / "small.tar.gz")
    plan = project.planned(f"{archive}#sha256={digest}", tmp_path / "cache")
    Path(plan.work.folder).mkdir(parents=True)
    assert fetch.fetch(plan.origin, plan.work, lambda _: None) == digest
    (source / "sum.c").write_text("int other;\n")
    packed(source, archive)
    fetch.place(plan.origin, plan.work, lambda _: None)
    assert "other" not in Path(plan.work.folder, "source/sum.c").read_text()


@needs_compiler
def test_an_archive_that_somebody_removed_is_had_again_when_it_is_needed(tmp_path):
    archive, digest = packed(project.plant(tmp_path / "source"), tmp_path / "small.tar.gz")
    plan = project.planned(f"{archive}#sha256={digest}", tmp_path / "cache")
    first = build.run(plan)
    shutil.rmtree(Path(plan.work.folder, "archive"))
    assert build.run(plan).reused == STAGES
    shutil.rmtree(Path(plan.work.folder, "source"))
    assert build.run(plan).digest == first.digest


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """A source package of our own in an archive of our own, asked for by the real apt."""
    if not all(Path("/usr/bin", tool).exists() for tool in ("apt-get", "dpkg-source", "dpkg-scansources")):
        pytest.skip("needs apt and dpkg-dev")
    pool = tmp_path / "pool"
    source = project.plant(pool / "rocr-runtime-1.2.3")
    packed(source, pool / "rocr-runtime_1.2.3.orig.tar.gz")
    (source / "debian/source").mkdir(parents=True)
    (source / "debian/source/format").write_text("3.0 (quilt)\n")
    (source / "debian/changelog").write_text(
        "rocr-runtime (1.2.3-4) sid; urgency=low\n\n  * x\n\n -- x <x@example.org>  Wed, 01 Jan 2020 00:00:00 +0000\n"
    )
    control = (
        "Source: rocr-runtime\nMaintainer: x <x@example.org>\nStandards-Version: 4.6.0\n\nPackage: small\nArchitecture: any\nDescription: x\n x\n"
    )
    (source / "debian/control").write_text(control)
    (source / "debian/rules").write_text("#!/usr/bin/make -f\n")
    subprocess.run(["dpkg-source", "-b", source.name], cwd=pool, check=True, capture_output=True)
    index = subprocess.run(["dpkg-scansources", "."], cwd=pool, check=True, capture_output=True).stdout
    (pool / "Sources").write_bytes(index)
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (tmp_path / "apt" / name).mkdir(parents=True)
    (tmp_path / "apt/etc/sources.list").write_text(f"deb-src [trusted=yes] file:{pool} ./\n")
    (tmp_path / "apt/status").write_text("")
    settings = {"Dir::Etc": "etc", "Dir::State": "", "Dir::State::status": "status", "Dir::Cache": "cache", "Dir::State::lists": "lists"}
    lines = [f'{key} "{tmp_path}/apt/{value}";' for key, value in settings.items()]
    (tmp_path / "apt.conf").write_text("\n".join([*lines, 'Dir::Etc::sourceparts "-";', 'APT::Sandbox::User "root";']))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text("ID=debian\n")
    return Root(str(tmp_path / "root")), pool


APT = {'date = "2026-11"': 'date = "2026-11"\napt = "rocr-runtime"'}


@needs_compiler
def test_a_source_package_is_fetched_checked_and_built(tmp_path, distribution):
    plan = project.planned("apt", tmp_path, project.recipes(**APT), distribution[0])
    assert plan.origin == fetch.Origin("apt", "rocr-runtime", "1.2.3")
    assert build.run(plan).proven[0].soname == "libsmall.so.1"


@needs_compiler
def test_of_the_versions_of_all_suites_the_wanted_one_is_taken(tmp_path, distribution):
    """apt by itself takes the newest. One more of another release is no reason to fetch anew what has the wanted number."""
    pool = distribution[1]
    asked, work = [fetch.Origin("apt", "rocr-runtime", mark) for mark in ("1.2.3", "")], Work(str(tmp_path))
    before = [fetch.identity(one, work, pytest.fail) for one in asked]
    newer = (pool / "rocr-runtime-1.2.3").rename(pool / "rocr-runtime-1.10.0")
    (pool / "rocr-runtime_1.10.0.orig.tar.gz").write_bytes((pool / "rocr-runtime_1.2.3.orig.tar.gz").read_bytes())
    (newer / "debian/changelog").write_text((newer / "debian/changelog").read_text().replace("1.2.3-4", "1.10.0-1"))
    subprocess.run(["dpkg-source", "-b", newer.name], cwd=pool, check=True, capture_output=True)
    (pool / "Sources").write_bytes(subprocess.run(["dpkg-scansources", "."], cwd=pool, check=True, capture_output=True).stdout)
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    plan = project.planned("apt", tmp_path, project.recipes(**APT), distribution[0])
    assert build.run(plan).proven[0].soname == "libsmall.so.1"
    assert [path.name for path in Path(plan.work.folder, "archive").glob("*.dsc")] == ["rocr-runtime_1.2.3-4.dsc"]
    assert [fetch.identity(one, work, pytest.fail) == then for one, then in zip(asked, before, strict=True)] == [True, False]


def test_a_source_package_of_another_version_is_refused(tmp_path, distribution):
    plan = project.planned("apt", tmp_path, project.recipes(**APT), distribution[0], version="1.2.4")
    with pytest.raises(RefusedError, match="the source packages of rocr-runtime here are 1.2.3-4; 1.2.4 was asked for"):
        build.run(plan)


def test_a_source_package_that_was_changed_on_the_way_is_refused(tmp_path, distribution):
    path = distribution[1] / "rocr-runtime_1.2.3.orig.tar.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(RocmPatchError, match="apt-get source failed"):
        build.run(project.planned("apt", tmp_path, project.recipes(**APT), distribution[0]))


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def dated(info, when):
    info.pax_headers = {"mtime": when}
    return info


HOSTILE = {
    "above": [member("../out", size=1)],
    "absolute": [member("/tmp/rocm-patch-hostile-member", size=1)],
    "above within": [member("a/../../out", size=1)],
    "device": [member("a/null", tarfile.CHRTYPE)],
    "fifo": [member("a/fifo", tarfile.FIFOTYPE)],
    "link out": [member("a/link", tarfile.SYMTYPE, "../../out")],
    "link to the root": [member("a/link", tarfile.SYMTYPE, "/etc")],
    "link out of the top": [member("a", tarfile.DIRTYPE), member("a/link", tarfile.SYMTYPE, "../out")],
    "through a link": [member("a/b", tarfile.SYMTYPE, "c"), member("a/b/out", size=1)],
    "over a link": [member("a/b", tarfile.SYMTYPE, "c"), member("a/b", size=1)],
    "hard link out": [member("a/hard", tarfile.LNKTYPE, "../../out")],
    "hard link to a link": [
        member("a/b/c/link", tarfile.SYMTYPE, "../.."),
        member("a/top", tarfile.LNKTYPE, "a/b/c/link"),
        member("a/top/out", size=1),
        member("a/file", size=1),
    ],
    "hard link to a folder": [member("a/b/c", size=1), member("a/top", tarfile.LNKTYPE, "a/b")],
    "hard link to nothing": [member("a/top", tarfile.LNKTYPE, "a/b"), member("a/file", size=1)],
    "link out through a link": [
        member("a/b/c/d", size=1),
        member("a/b/c/l", tarfile.SYMTYPE, "../.."),
        member("a/m", tarfile.SYMTYPE, "b/c/l/../../out"),
    ],
    "link through a link": [member("a/b", tarfile.SYMTYPE, "z"), member("a/z/x", size=1), member("a/b/l", tarfile.SYMTYPE, "../../out")],
    "link below a link": [
        member("a/p/q/r", tarfile.SYMTYPE, "../../z"),
        member("a/z/x", size=1),
        member("a/p/q/r/l", tarfile.SYMTYPE, "../../../../out"),
    ],
    "file, then a link in its folder's place": [member("a/b/out", size=1), member("a/b", tarfile.SYMTYPE, "c")],
    "twice": [member("a/b", size=1), member("a/b", size=1)],
    "below a file": [member("a/b", size=1), member("a/b/c", size=1)],
    "a name that is too long": [member(f"a/{'b' * 300}"), member("a/c")],
    "a date beyond all": [dated(member("a/b", size=1), "1e30"), member("a/c")],
    "a date that is none": [dated(member("a/b", size=1), "nan"), member("a/c")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path, members):
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    with pytest.raises(FormatError):
        unpack(str(archive), str(tmp_path / "in"))
    assert not (tmp_path / "out").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "in"}
    assert not Path("/tmp/rocm-patch-hostile-member").exists()


@pytest.mark.parametrize("data", [b"", b"no archive at all", b"\x1f\x8b\x08\x00broken"])
def test_what_is_no_archive_is_said_so(tmp_path, data):
    (tmp_path / "x.tar.gz").write_bytes(data)
    with pytest.raises(FormatError, match="is no archive"):
        unpack(str(tmp_path / "x.tar.gz"), str(tmp_path / "in"))


def test_links_that_stay_inside_are_kept(tmp_path):
    members = [member("a/l/m", tarfile.SYMTYPE, "../b/c"), member("a/b/c", size=1), member("a/hard", tarfile.LNKTYPE, "a/b/c")]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    unpack(str(tmp_path / "x.tar"), str(tmp_path / "in"))
    assert [(tmp_path / "in" / name).read_bytes() for name in ("l/m", "b/c", "hard")] == [b"x"] * 3


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_an_archive_with_a_damaged_middle_is_said_so(tmp_path, packing):
    with tarfile.open(tmp_path / "x.tar", f"w:{packing}") as tar:
        tar.addfile(member("a/b", size=1 << 18), io.BytesIO(random.Random(1).randbytes(1 << 18)))
        tar.addfile(member("a/c"))
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[100_000:100_040] = bytes(40)
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(FormatError, match="is no archive"):
        unpack(str(tmp_path / "x.tar"), str(tmp_path / "in"))


def test_an_archive_of_headers_without_end_is_said_so(tmp_path):
    """Each names the next one: tarfile reads them by recursion."""
    name = member("././@LongLink", b"L", size=512).tobuf() + b"a".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(name * 3000 + member("a").tobuf() + bytes(1024))
    with pytest.raises(FormatError, match="is no archive"):
        unpack(str(tmp_path / "x.tar"), str(tmp_path / "in"))


def test_what_the_machine_lacks_is_no_fault_of_the_archive(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(member("a/b", size=1 << 20), io.BytesIO(bytes(1 << 20)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            unpack(str(tmp_path / "x.tar"), str(tmp_path / "in"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "unit/../../outside", "up/../outside"])
def test_a_link_that_leads_out_of_a_folder_is_refused(tmp_path, target):
    """Also through another one."""
    source = project.plant(tmp_path / "source")
    (source / "p/q").mkdir(parents=True)
    (source / "p/q/up").symlink_to("../..")
    (source / "p/q/link").symlink_to(f"../../{target}" if target[0] == "." else target)
    plan = project.planned(source, tmp_path / "cache")
    with pytest.raises(RefusedError, match="leads out"):
        fetch.place(plan.origin, plan.work, lambda _: None)
