"""Switches the engine on when torch is imported. The standard library only, and never the reason that `import torch` fails.

Two doors lead here. torch 2.5 and later calls the entry points of the group `torch.backends` at the end of its import
(https://docs.pytorch.org/docs/stable/accelerator/autoload.html), unless TORCH_DEVICE_BACKEND_AUTOLOAD has another value
than "1"; what they raise would make `import torch` fail, so nothing is raised here. For an older torch a `.pth` file
calls `watch` at the start of Python, which waits for torch in the import system.

This file has two lives: a module of this package, and alone, as the package `rocm_patch_autoload` of an environment that
the remedies `conv-engine` and `miopen-off` were applied to. It lies outside `conv`, whose import needs torch and may fail:
an entry point that cannot be imported makes `import torch` fail, whether the engine is wanted or not.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself would be the slowest thing that a start of Python loads for us
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

SWITCH = "ROCM_PATCH_CONV"
"""1 switches the engine on where this package is installed, 0 switches it off where a remedy put it."""
ENGINES = ("rocm_patch.conv", "rocm_patch_conv")
WORDS = 300
"""Length of what is said of an error: one line, no trace."""

_done: set[str] = set()


# ------------------------------------------------------------------ doors


def load() -> None:
    """Entry point of the installed package: does nothing unless ROCM_PATCH_CONV=1."""
    if os.environ.get(SWITCH) == "1":
        _start(_engine)


def engine() -> None:
    """Entry point of `conv-engine`: the engine, unless ROCM_PATCH_CONV=0."""
    if os.environ.get(SWITCH) != "0":
        _start(_engine)


def miopen_off() -> None:
    """Entry point of `miopen-off`: torch without MIOpen, unless ROCM_PATCH_CONV=0."""
    if os.environ.get(SWITCH) != "0":
        _start(_miopen_off)


def watch(door: str) -> None:
    """Call one of the doors above, by its name, once a torch without autoload has been imported. For the `.pth` file."""
    call = {"engine": engine, "miopen_off": miopen_off}[door]
    seen = "torch" in sys.modules or any(type(finder).__name__ == _Watcher.__name__ for finder in sys.meta_path)
    if not seen and os.environ.get(SWITCH) != "0" and _allowed():
        sys.meta_path.insert(0, _Watcher(call))


# ------------------------------------------------------------------ what they do


def _start(action: Callable[[], None]) -> None:
    """Once a process, and never with an error; Ctrl-C alone goes through."""
    if action.__name__ in _done:
        return
    _done.add(action.__name__)
    try:
        action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:WORDS]
        if sys.stderr is not None:
            sys.stderr.write(f"rocm-patch: torch runs as it is, the autoload failed ({words}); {SWITCH}=0 silences this\n")


def _engine() -> None:
    import importlib

    name = ENGINES[0] if __name__ == "rocm_patch.autoload" else ENGINES[1]
    for other in ENGINES:
        loaded = sys.modules.get(other) if other != name else None
        if loaded is not None and hasattr(loaded, "status") and loaded.status()["enabled"]:
            return  # two engines over one operator would hide each other
    found = importlib.import_module(name)
    try:
        found.enable(devices=("cuda",))
    except BaseException:
        found.disable()
        raise


def _miopen_off() -> None:
    torch = sys.modules["torch"]
    if getattr(torch.version, "hip", None):  # elsewhere the same switch belongs to cuDNN, which works
        torch.backends.cudnn.enabled = False


# ------------------------------------------------------------------ torch before 2.5


def _allowed() -> bool:
    """The variable by which torch 2.5 and later is told to leave entry points alone holds for the older ones too."""
    return os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1"


class _Watcher:
    """A finder that finds nothing itself: it lets the others find torch, and is called when torch has been executed.

    The loader stays the one that was found, for the time of the import with an attribute of ours: other hooks, and torch's
    own look at its `__spec__`, see what they would see without us.
    """

    def __init__(self, door: Callable[[], None]) -> None:
        self.door = door

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Ask the finders behind us; those before us have been asked."""
        if name != "torch" or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                self._arm(spec.loader)
                return spec
        return None

    def _arm(self, loader: Any) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module: ModuleType) -> None:
            loader.__dict__.pop("exec_module", None)
            execute(module)
            if module.__name__ == "torch":
                self._imported(module)

        try:
            loader.exec_module = exec_module
        except AttributeError:  # a loader that takes no attributes: torch is imported without us
            return

    def _imported(self, torch: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if not hasattr(torch, "_import_device_backends"):  # else torch has called our entry point, or was told not to
            self.door()
