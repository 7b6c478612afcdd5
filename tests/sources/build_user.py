"""The real verb in a process of its own, as a user without rights, on the small project of our own making."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

import rocm_patch

USER = 31997
"""As root we become this number; it needs no name."""
ENTRY = """import os, sys
import build_project
from rocm_patch.sources import build_recipe
table = build_project.recipes(os.environ.get("TEST_MORE", ""), int(os.environ.get("TEST_SILENCE", "5")), **eval(os.environ.get("TEST_CHANGES", "{}")))
build_recipe.load = lambda: table  # the shipped ones build for minutes
from rocm_patch.cli import main
main()
"""
ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Ended:
    """What a user saw. `said` is both streams."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Site:
    """A folder that the user can reach, and what runs there."""

    base: Path
    python: str
    packages: tuple[str, ...]

    @property
    def cache(self) -> Path:
        return self.base / "home/.cache/rocm-patch/builds"

    @property
    def folder(self) -> Path:
        """Of the only build that there is."""
        [folder] = [path for path in self.cache.iterdir() if path.name.startswith("rocr-")]
        return folder

    def own(self, *paths: Path) -> None:
        """Give files to the user."""
        if ROOT:
            subprocess.run(["chown", "-R", f"{USER}:{USER}", *paths], check=True)

    def command(self, *words: object) -> list[str]:
        # setpriv starts its program while it still may read everything; what that starts may not.
        become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env"] if ROOT else []
        return [*become, self.python, "-B", str(self.base / "site/entry.py"), *map(str, words)]

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join((str(self.base / "site"), *self.packages))
        values = {"PATH": "/usr/bin:/bin", "HOME": str(self.base / "home"), "PYTHONPATH": path, **more}
        return {name: value for name, value in values.items() if value != "unset"}

    def start(self, source: object, *words: object, setup: str = "", more: dict[str, str] | None = None, before=None) -> subprocess.Popen:
        """`setup` runs as root in a mount namespace of its own; `before` in the child, as preexec."""
        command = self.command("build", "rocr", "--version", "1.2.3", "--patch", "none", "--prefix", "/opt/small", "--source", source, *words)
        if setup:
            command = ["unshare", "--mount", "sh", "-c", f'set -e; {setup}; exec "$@"', "sh", *command]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=self.environment(**(more or {})),
            start_new_session=True,
            preexec_fn=before,
        )

    def build(self, source: object, *words: object, **options) -> Ended:
        """To the end. No trace is ever seen."""
        return ended(self.start(source, *words, **options))

    def staged(self) -> bool:
        return any(self.cache.glob("*/staged"))


def ended(child: subprocess.Popen) -> Ended:
    out, err = child.communicate(timeout=120)
    seen = Ended(child.returncode, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape"))
    assert "Traceback" not in seen.said
    return seen


def digest(seen: Ended) -> str:
    """Of the manifest, from a build that went well."""
    assert seen.code == 0, seen
    return seen.out.partition("sha256 of its manifest ")[2].split()[0]


def make(base: Path) -> Site:
    """Skips, with the reason, where no interpreter can be reached by the user."""
    base.chmod(0o755)
    for name in ("home", "site"):
        (base / name).mkdir(mode=0o755)
    shutil.copytree(Path(rocm_patch.__file__).parent, base / "site/rocm_patch", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("build_project.py"), base / "site")
    (base / "site/entry.py").write_text(ENTRY)
    subprocess.run(["chmod", "-R", "a+rX", base / "site"], check=True)
    packages = tuple(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3")):
        site = Site(base, python, packages)
        site.own(base / "home")
        try:
            if subprocess.run(site.command("--version"), env=site.environment(), cwd="/", capture_output=True, check=False).returncode == 0:
                return site
        except OSError:
            continue
    pytest.skip("neither this interpreter nor the system's can be used by another user with the libraries that are needed")


def left(word: str) -> list[str]:
    """Command lines that run and hold a word."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found
