"""Root -> Machine: everything that can be read about a machine, without root and without touching anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rocm_patch.knowledge import Knowledge
from rocm_patch.machine import gpus, platform, recorded, settings, torches, user
from rocm_patch.model import Fact, Known, Machine, RocmInstall, Unknown
from rocm_patch.root import Root

__all__ = ["collect"]


def collect(
    root: Root, knowledge: Knowledge, *, interpreters: Iterable[str] = (), environment: Mapping[str, str] | None = None, home: str | None = None
) -> Machine:
    """Read a machine.

    `environment` is the process environment to judge (the live one is only given for the live machine: a recorded
    tree has its own in recording.toml). `interpreters` are paths of Pythons to look into, on this machine or in the
    tree. Raises FormatError only for a broken recording.toml; whatever else cannot be read is in `unread`.
    """
    said = recorded.read(root)
    who = user.find(root, said, home)
    log = platform.kernel_log(root)
    found, others, unread_gpus = gpus.collect(root, said, who, knowledge, log)
    torch_installs, unread_sites = torches.collect(root, who.home, interpreters)
    process = (environment or {}) if root.live else said.environment
    set_values, unread_files = settings.collect(root, who, knowledge, process)
    rocms = _rocms(root)
    return Machine(
        root=root.path,
        gpus=found,
        other_gpus=others,
        platform=platform.collect(root, said, who, log),
        torches=torch_installs,
        rocms=rocms,
        settings=set_values,
        kernel_log=log,
        unread=tuple({item.source.strip("/"): item for item in (*root.unread, *unread_gpus, *unread_sites, *unread_files)}.values()),
    )


def _rocms(root: Root) -> tuple[RocmInstall, ...]:
    found = []
    for name in root.list("opt"):
        path = f"opt/{name}"
        if name.startswith("rocm") and root.link(path) is None and root.is_folder(path):
            answer = root.word(f"{path}/.info/version")
            version: Fact[str] = Unknown("no .info/version", path)
            if isinstance(answer, Known) and answer.value:
                version = Known(answer.value.partition("-")[0], f"/{path}/.info/version")
            found.append(RocmInstall(f"/{path}", version))
    return tuple(found)
