"""Bring the sources here: a folder, an archive, a release by address and SHA-256, a git commit, the distribution's source package.

identity = Origin -> a digest that changes whenever they must be fetched anew
fetch    = Origin -> a file or nothing in WORK/archive, and a digest of what was got
place    = that -> WORK/source, there whole by one rename
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Final

from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.run import CLEAN, run
from rocm_patch.sources.build_work import Work, digest, remove
from rocm_patch.sources.fetch_origin import Origin, origin
from rocm_patch.sources.unpack import leads_out, unpack

__all__ = ["Origin", "fetch", "identity", "origin", "place"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_HOUR: Final = 3600.0
_MINUTE: Final = 60.0
_SKIP: Final = frozenset((".git", ".hg", ".svn", ".pc"))


def identity(wanted: Origin, work: Work, say: Callable[[str], None]) -> str:
    """Changes whenever the sources must be fetched anew.

    That is with a folder's names, sizes and times, with the commit that a branch or tag names now, with the newest revision of a source
    package. What cannot be asked, as without a network, counts as it was.
    """
    if wanted.kind == "folder":
        return digest(wanted.place, _listing(wanted.place))
    if wanted.kind == "archive":
        about = os.stat(wanted.place)
        return digest(wanted.place, wanted.mark, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if wanted.kind == "address" or _COMMIT.fullmatch(wanted.mark):
        return digest(wanted.kind, wanted.place, wanted.mark)
    try:
        if wanted.kind == "git":
            now = _tool("git", ["ls-remote", "--quiet", "--", wanted.place, wanted.mark or "HEAD"], work.folder, "install git", _MINUTE)
        else:
            now = _offered(wanted, work.folder) if wanted.mark else " ".join(_versions(wanted.place, work.folder))
    except RocmPatchError as error:
        if before := _before(work):
            say(f"{wanted.words}: whether there is a newer one cannot be asked, and what was fetched is taken: {error.what.splitlines()[0]}")
        return before
    return digest(wanted.kind, wanted.place, wanted.mark, now)


def _before(work: Work) -> str:
    """The identity of what was fetched here, as its stamp notes it; empty if nothing was."""
    try:
        with open(work.at("stamps", "fetched.json"), encoding="utf-8") as file:
            return str(json.load(file)["inputs"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def fetch(wanted: Origin, work: Work, say: Callable[[str], None]) -> str:
    """Bring it here, checked. Returns what tells one content from another: a SHA-256, a commit, a folder's listing.

    Raises:
        RefusedError: the digest is another.
        RocmPatchError: it cannot be had; says why and what to do.
    """
    say(f"fetching {wanted.words}")
    archive = work.at("archive")
    if wanted.kind == "folder":
        return identity(wanted, work, say)
    os.makedirs(archive, mode=0o700, exist_ok=True)
    if wanted.kind == "archive":
        return _take(wanted, os.path.join(archive, "release"))
    if wanted.kind == "address":
        return _download(wanted, os.path.join(archive, "release"))
    return _clone(wanted, os.path.join(archive, "git")) if wanted.kind == "git" else _apt(wanted, archive)


def place(wanted: Origin, work: Work, mend: Callable[[str], None]) -> None:
    """Make WORK/source anew out of what was fetched. `mend` gets the folder before it has its name."""
    new = work.at("source.new")
    for name in ("source.new", "source", "build"):  # objects of other sources would pass for newer than these
        remove(work.at(name))
    archive = work.at("archive")
    if wanted.kind != "folder" and not (os.path.isdir(archive) and os.listdir(archive)):  # somebody made space; its stamp would stand for ever
        fetch(wanted, work, lambda _: None)
    if wanted.kind == "folder":
        _copy(wanted.place, new)
    elif wanted.kind == "git":
        _copy(work.at("archive", "git"), new)
    elif wanted.kind == "apt":
        control = next(name for name in sorted(os.listdir(work.at("archive"))) if name.endswith(".dsc"))
        _tool("dpkg-source", ["--no-copy", "-x", work.at("archive", control), new], work.folder, "sudo apt install dpkg-dev")
    else:
        unpack(work.at("archive", "release"), new)
    mend(new)
    os.rename(new, work.at("source"))


def _raise(error: OSError) -> None:
    """A folder that cannot be read: left out in silence, it would be missed hours later, or never."""
    raise error


def _listing(folder: str) -> list[tuple[str, int, int, int]]:
    """Links to folders too. The time of the last change of any kind tells also what keeps size and date: a mode, where a link leads."""
    rows = []
    for at, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(set(folders) - _SKIP)
        for name in sorted([*names, *(name for name in folders if os.path.islink(os.path.join(at, name)))]):
            path = os.path.join(at, name)
            about = os.lstat(path)
            rows.append((os.path.relpath(path, folder), about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return rows


def _copy(source: str, target: str) -> None:
    """Copy plain files and links that stay inside; sockets, devices and the records of version control stay behind."""
    for at, folders, names in os.walk(source, onerror=_raise):
        folders[:] = [name for name in folders if name not in _SKIP]
        relative = os.path.relpath(at, source)
        os.makedirs(os.path.join(target, relative), mode=0o700, exist_ok=True)
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(at, name)))]:
            path, copy = os.path.join(at, name), os.path.normpath(os.path.join(target, relative, name))
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                leads = os.readlink(path)
                if leads_out(relative, leads):
                    raise RefusedError(f"the link {path} leads out of the sources", "build from a folder without it")
                os.symlink(leads, copy)
            elif stat.S_ISREG(mode):
                shutil.copy2(path, copy, follow_symlinks=False)


def _hash(path: str) -> str:
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value.update(chunk)
    return value.hexdigest()


def _same(wanted: Origin, found: str) -> str:
    if wanted.mark and found != wanted.mark:
        hint = "the file was changed or cut short: fetch it again, and compare the digest with the one that its makers publish"
        raise RefusedError(f"{wanted.place}: wrong checksum: SHA-256 is {found}, {wanted.mark} was expected", hint)
    return found


def _take(wanted: Origin, path: str) -> str:
    """Copy an archive and look at what was copied: by the time it is unpacked another file can lie at the user's path."""
    remove(path)
    value = hashlib.sha256()
    with open(wanted.place, "rb") as file, open(f"{path}.part", "wb") as copy:
        while chunk := file.read(1 << 20):
            value.update(chunk)
            copy.write(chunk)
    found = _same(wanted, value.hexdigest())
    os.rename(f"{path}.part", path)
    return found


def _download(wanted: Origin, path: str) -> str:
    if os.path.isfile(path):
        with contextlib.suppress(RefusedError):
            return _same(wanted, _hash(path))
    part = f"{path}.part"
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if have and _hash(part) == wanted.mark:  # killed between the last byte and the name: a server has nothing to send from there on
        os.rename(part, path)
        return wanted.mark
    request = urllib.request.Request(wanted.place, headers={"User-Agent": "rocm-patch", **({"Range": f"bytes={have}-"} if have else {})})  # noqa: S310 - schemes were chosen in `origin`
    try:
        with urllib.request.urlopen(request, timeout=60) as answer, open(part, "ab" if have and answer.status == 206 else "wb") as file:  # noqa: S310
            shutil.copyfileobj(answer, file, 1 << 20)
            wanted_length = int(answer.headers.get("Content-Length") or 0)
            if file.tell() - (have if answer.status == 206 else 0) < wanted_length:  # http.client does not mind
                raise ConnectionError("the connection broke off")
    except urllib.error.HTTPError as error:
        remove(part)
        raise RocmPatchError(f"{wanted.place}: the server says {error.code} {error.reason}", "--source DIR builds what you have") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException, ValueError) as error:
        raise RocmPatchError(
            f"{wanted.place} cannot be fetched: {error}", "try again: it goes on from there; --source DIR needs no network"
        ) from error
    try:
        found = _same(wanted, _hash(part))
    except RefusedError:
        remove(part)
        raise
    os.rename(part, path)
    return found


def _tool(program: str, arguments: Sequence[str], cwd: str, package: str, timeout: float = _HOUR) -> str:
    path = shutil.which(program, path=CLEAN["PATH"])
    if not path:
        raise RocmPatchError(f"{program} is not installed", package)
    keep = {name: os.environ[name] for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "APT_CONFIG", "SSL_CERT_FILE") if name in os.environ}
    # No home: in a checkout a .gitconfig of the repository was the user's own, and told git to write into any file.
    git = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    ended = run([path, *arguments], timeout=timeout, environment={**CLEAN, **keep, **git, "HOME": "/nonexistent", "TMPDIR": cwd}, cwd=cwd)
    if ended.code != 0:
        raise RocmPatchError(f"{program} {arguments[0]} failed: {ended.text or ended.code}", _hint(ended.text))
    return ended.out.decode("utf-8", "replace").strip()


def _hint(text: str) -> str:
    if "deb-src" in text:
        return "add 'deb-src' to the Types of your file in /etc/apt/sources.list.d, then: sudo apt update"
    if "404" in text or "Unable to find a source" in text:
        return "the server has no such source: sudo apt update, another --version, or --source with the address of a repository"
    if "Remote branch" in text or "couldn't find remote ref" in text or "not our ref" in text:
        return "the repository has no such tag or commit: name one with 'URL#tag'"
    return "--source DIR builds what you have"


def _clone(wanted: Origin, folder: str) -> str:
    """One commit without its history. git checks each object against its name, and so the whole against the commit."""
    package = "install git"
    remove(folder)
    os.makedirs(folder, mode=0o700)
    safe = ["-c", "core.hooksPath=/dev/null", "-c", "fetch.fsckObjects=true"]
    _tool("git", ["init", "--quiet", "."], folder, package)
    _tool("git", [*safe, "fetch", "--quiet", "--depth=1", "--", wanted.place, wanted.mark or "HEAD"], folder, package)
    _tool("git", [*safe, "checkout", "--quiet", "--detach", "FETCH_HEAD"], folder, package)
    commit = _tool("git", ["rev-parse", "HEAD"], folder, package)
    if _COMMIT.fullmatch(wanted.mark) and commit != wanted.mark:
        raise RefusedError(f"{wanted.place}: the commit is {commit}, {wanted.mark} was asked for", "ask for a commit by its full name")
    return commit


def _versions(package: str, folder: str) -> list[str]:
    said = _tool("apt-cache", ["madison", package], folder, "apt is missing")
    return list(dict.fromkeys(re.findall(r"(?m)^ *\S+ \| *(\S+) \|.* Sources$", said)))


def _offered(wanted: Origin, folder: str) -> str:
    """The package with the version that is wanted: apt by itself takes the newest of all suites. Raises RefusedError if none is offered."""
    versions = _versions(wanted.place, folder)
    for version in versions:
        if re.match(rf"(\d+:)?{re.escape(wanted.mark)}([^\d.]|$)", version):
            return f"{wanted.place}={version}"
    if versions and wanted.mark:
        series = ".".join(wanted.mark.split(".")[:2])
        near = sorted(versions, key=lambda version: f"{version}.".startswith(f"{series}."), reverse=True)
        words = f"the source packages of {wanted.place} here are {', '.join(near[:8])}; {wanted.mark} was asked for"
        raise RefusedError(words, "sudo apt update, another --version, or --source with the address of a repository")
    return wanted.place


def _apt(wanted: Origin, archive: str) -> str:
    """The source package; apt checks the index by its signature, and we every file by the digests in its control file."""
    for name in os.listdir(archive):
        remove(os.path.join(archive, name))
    package = f"{wanted.place}={wanted.mark}" if "-" in wanted.mark else _offered(wanted, archive)
    _tool("apt-get", ["source", "--download-only", "--only-source", package], archive, "apt-get is missing")
    control = next((name for name in sorted(os.listdir(archive)) if name.endswith(".dsc")), "")
    if not control:
        raise FormatError(f"apt-get brought no control file of {wanted.place}")
    with open(os.path.join(archive, control), encoding="utf-8", errors="replace") as file:
        text = file.read()
    if wanted.mark and not re.search(rf"(?m)^Version: (\d+:)?{re.escape(wanted.mark)}(\D|$)", text):
        found = re.search(r"(?m)^Version: (.*)$", text)
        hint = "another --version, or --source with the address of a repository"
        raise RefusedError(f"the source package {wanted.place} is {found.group(1) if found else 'of no version'}, {wanted.mark} was asked for", hint)
    listed = re.search(r"(?m)^Checksums-Sha256:\n((?: .*\n)+)", text)
    for row in listed.group(1).splitlines() if listed else ():
        value, _, name = row.split()
        _same(Origin("archive", os.path.join(archive, os.path.basename(name)), value), _hash(os.path.join(archive, os.path.basename(name))))
    if not listed:
        raise FormatError(f"{control} names no SHA-256")
    return _hash(os.path.join(archive, control))
