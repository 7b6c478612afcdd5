"""GPU convolution in PyTorch without MIOpen: `enable()`, and every convolution of this process runs on our kernels.

    from rocm_patch import conv
    conv.enable()

This package needs torch and the standard library only, and can be copied into another environment by itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from . import dispatch
from .choose import Settings

__all__ = ["disable", "enable", "engine", "get_device", "patch_conv2d", "problems", "status"]

KEYS = {"cuda": "CUDA", "cpu": "CPU"}
"""Dispatch keys by device type; PyTorch built for ROCm calls its devices cuda as well."""

_lock = threading.RLock()
_library: torch.library.Library | None = None
_devices: tuple[str, ...] = ()
_vendor_before: bool | None = None


def enable(devices: tuple[str, ...] = ("cuda", "cpu"), *, blas: bool = True, workspace: int | None = None, tuned: bool = True) -> None:
    """Serve convolutions on these device types, and switch the vendor's library off for batch norm, RNN and CTC too.

    On ROCm `torch.backends.cudnn.enabled` is the switch of MIOpen, whose batch norm does not even compile on gfx101x; what it serves besides
    convolution then runs on PyTorch's own kernels. `disable` restores the switch.

    Args:
        devices: device types, "cuda" and "cpu".
        blas: whether matrix products of the BLAS that torch brings may be used (rocBLAS, cuBLAS).
        workspace: bytes of memory beside inputs and outputs, 256 MiB by default (ROCM_PATCH_CONV_WORKSPACE in MiB).
        tuned: whether choices that were measured on this stack are used.

    Raises:
        ValueError: a device type that is none of "cuda" and "cpu"; a ROCM_PATCH_CONV_WORKSPACE that is no number of MiB.
    """
    global _library, _devices, _vendor_before
    unknown = [device for device in devices if device not in KEYS]
    if unknown:
        raise ValueError(f"devices are of {', '.join(KEYS)}, not {', '.join(unknown)}")
    if workspace is None:
        text = os.environ.get("ROCM_PATCH_CONV_WORKSPACE") or "256"
        if not (text.isascii() and text.isdigit() and len(text) < 9):
            raise ValueError(f"ROCM_PATCH_CONV_WORKSPACE is a number of MiB, not {text[:40]!r}")
        workspace = int(text) << 20
    with _lock:
        disable()
        dispatch.configure(Settings(workspace, blas, tuned))
        library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verrid")  # some versions of torch say it of every override: it is what we are for
            for device in dict.fromkeys(devices):
                library.impl("convolution", dispatch.convolution, KEYS[device])
                library.impl("convolution_backward", dispatch.convolution_backward, KEYS[device])
        _library, _devices = library, tuple(dict.fromkeys(devices))
        if "cuda" in devices:
            _vendor_before = torch.backends.cudnn.enabled
            _set_vendor(False)


def disable() -> None:
    """Restore the operators as they were before `enable`, and the switch unless the program has set it since."""
    global _library, _devices, _vendor_before
    with _lock:
        if _library is not None:
            if hasattr(_library, "_destroy"):
                _library._destroy()
            _library = None
        if _vendor_before is not None:
            if not torch.backends.cudnn.enabled:
                _set_vendor(_vendor_before)
            _vendor_before = None
        _devices = ()


def _set_vendor(enabled: bool) -> None:
    """`torch.backends.cudnn.enabled`, which refuses to be set in a program that called `torch.backends.disable_global_flags`."""
    torch._C._set_cudnn_enabled(enabled)


@contextlib.contextmanager
def engine(devices: tuple[str, ...] = ("cuda", "cpu"), **options: Any) -> Iterator[None]:
    """The engine inside a `with`; what was enabled before is enabled again after it."""
    before = (_devices, dispatch._settings) if _library is not None else None
    enable(devices, **options)
    try:
        yield
    finally:
        disable()
        if before is not None:
            settings = before[1]
            enable(before[0], blas=settings.blas, workspace=settings.workspace, tuned=settings.tuned)


def status() -> dict[str, Any]:
    """`{"enabled", "devices", "calls": {algorithm: n}, "fallbacks": {reason: n}}`, counted since the process began."""
    return {"enabled": _library is not None, "devices": list(_devices), "calls": dict(dispatch.calls), "fallbacks": dict(dispatch.fallbacks)}


def problems() -> list[str]:
    """Names of the convolutions that this process asked for since `enable`, for `rocm-patch bench --tune --from FILE`."""
    return list(dispatch.choices)


def patch_conv2d() -> None:
    """The name that early scripts for these cards used: `enable()`."""
    enable()


def get_device() -> torch.device:
    """The GPU if torch sees one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
