"""Root's own copy of the code that changes the system: one zip file, built the same everywhere, installed by one shown command.

The unprivileged side builds it, compares its digest with the installed one, and asks sudo to run that: root never imports
from a folder that a user can write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
import sys
from typing import Final

from rocm_patch import knowledge
from rocm_patch.errors import RefusedError

INSTALLED: Final = "/usr/local/libexec/rocm-patch-root.pyz"
PYTHON: Final = "/usr/bin/python3"
NAME: Final = "rocm-patch-root.pyz"
MODULES: Final = (
    "__init__.py", "errors.py", "model.py", "codec.py", "root.py", "run.py", "apply.py", "knowledge/__init__.py", "changes/__init__.py",
    "changes/autoload.py", "changes/autoload_parts.py", "changes/boot_loaders.py", "changes/cmdline.py", "changes/cmdline_trial.py",
    "changes/cmdline_words.py", "changes/confirming.py",
    "changes/custom_menu.py", "changes/elevate.py", "changes/engine.py", "changes/environment.py",
    "changes/environment_check.py", "changes/environment_places.py", "changes/environment_text.py", "changes/executable_stack.py",
    "changes/group_file.py", "changes/grown.py", "changes/grub_compare.py", "changes/grub_drop_in.py", "changes/grub_environment.py",
    "changes/grub_generate.py", "changes/grub_menu.py", "changes/guard.py", "changes/image_owners.py", "changes/initramfs.py",
    "changes/initramfs_entry.py", "changes/journal.py", "changes/kernel_parameters.py", "changes/kind.py", "changes/loader_entries.py",
    "changes/modprobe.py", "changes/modprobe_config.py", "changes/permissions.py", "changes/places.py", "changes/prefix.py",
    "changes/entry_files.py", "changes/install_plugin.py", "changes/systemd_boot_trial.py", "changes/file_owners.py", "changes/neutralise.py",
    "changes/prefix_elf.py", "changes/prefix_manifest.py", "changes/prefix_means.py", "changes/prefix_reach.py", "changes/prefix_users.py",
    "changes/preflight.py", "changes/preload.py", "changes/privileged.py", "changes/record.py",
    "changes/system_tools.py", "changes/transaction.py", "changes/undo.py", "changes/unpack.py", "changes/venv.py", "changes/versions.py",
)  # fmt: skip
"""All that root runs of ours; a test compares this with what is imported."""
_MAIN: Final = "from rocm_patch.apply import privileged_main\n\nraise SystemExit(privileged_main())\n"
_DATE: Final = (2020, 1, 1, 0, 0, 0)


def build() -> bytes:
    """The zip file's bytes: the same for the same code and tables, on every machine and Python."""
    import importlib.resources
    import io
    import zipfile

    package = importlib.resources.files("rocm_patch")
    members = {"__main__.py": _MAIN.encode(), "rocm_patch/knowledge/tables.json": knowledge.baked().encode()}
    for name in MODULES:
        members[f"rocm_patch/{name}"] = package.joinpath(*name.split("/")).read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # stored: compressors differ from version to version
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, members[name])
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def check(cache_home: str, installed: str = INSTALLED) -> str:
    """Make sure that the installed copy is root's and is this very code; returns its path.

    Raises:
        RefusedError: it is absent, differs, or others than root can change it. The hint is the command that installs it.
    """
    data = build()
    try:
        with open(installed, "rb") as file:
            found = file.read(len(data) + 1)
    except OSError as error:
        what = f"root's copy of rocm-patch is not there: {installed}: {error.strerror}"
        raise RefusedError(what, install_hint(cache_home, data, installed)) from error
    weak = weak_point(installed)
    if weak is not None:
        place, why = weak
        hint = f"sudo chown root:root {shlex.quote(place)} && sudo chmod go-w {shlex.quote(place)}"
        raise RefusedError(f"root's copy of rocm-patch is not safe: {place} {why}", hint)
    if sha256(found) != sha256(data):
        raise RefusedError(f"root's copy of rocm-patch is another version or was changed: {installed}", install_hint(cache_home, data, installed))
    return installed


def install_hint(cache_home: str, data: bytes, installed: str = INSTALLED) -> str:
    """Put the built file into the user's cache and say the one command that installs it."""
    folder = f"{cache_home}/rocm-patch"
    path = f"{folder}/{NAME}"
    os.makedirs(folder, 0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return f"sudo install -D -o root -g root -m 0755 {shlex.quote(path)} {shlex.quote(installed)}"


def weak_point(path: str) -> tuple[str, str] | None:
    """Where and why others than root could change a file or swap a folder above it; None: they cannot."""
    path = os.path.abspath(path)
    while True:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return path, "is a link"
        if status.st_uid != 0:
            return path, f"belongs to user {status.st_uid}"
        if status.st_mode & 0o022:
            return path, "can be written by its group or by all"
        if path == "/":
            return None
        path = os.path.dirname(path)


def own_weak_point() -> tuple[str, str] | None:
    """Where a user could change the code that is running; None: nowhere."""
    seen = set[str]()
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] == "rocm_patch" or name == "__main__":
            path = getattr(module, "__file__", None) or ""
            while path and not os.path.exists(path):  # inside a zip file
                path = os.path.dirname(path)
            if path and path not in seen:
                seen.add(path)
                weak = weak_point(os.path.realpath(path))
                if weak is not None:
                    return weak
    return None


def refuse_sudo() -> None:
    """Do not run as root, through sudo, from code that a user can change.

    Raises:
        RefusedError: run without sudo, the command asks for rights itself and says how root's copy is installed.
    """
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        weak = own_weak_point()
        if weak is not None:
            hint = "run the same command without sudo: it asks for rights itself, and shows the one command that installs root's own copy"
            raise RefusedError(f"root does not run code that a user can change: {weak[0]} {weak[1]}", hint)
