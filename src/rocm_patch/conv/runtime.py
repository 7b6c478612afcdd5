"""Compile kernels at run time, keep what was compiled, launch: NVRTC and the CUDA driver, or hipRTC and HIP, by ctypes.

PyTorch's own `torch.cuda._compile_kernel` exists only in new versions and on CUDA, so the few calls are made here. Whatever is missing
(no compiler library in this wheel, say) is a `UnavailableError` with the reason, and the engine uses algorithms that need no kernel of ours.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import hashlib
import os
import re
import stat
import struct
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

FOLDER = Path(__file__).parent / "kernels"
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
"""The value of the macro ELEMENT for each dtype."""


class UnavailableError(RuntimeError):
    """Our kernels cannot be compiled or launched on this machine; the message says why."""


class KernelError(RuntimeError):
    """A kernel did not compile or could not be launched."""


Size = tuple[int, int, int]


class Kernel(Protocol):
    """A compiled kernel on one device."""

    def launch(self, grid: Size, block: int, arguments: bytes) -> None:
        """Queue it on the current stream; `arguments` is its parameter structure, byte for byte."""


class Runtime(Protocol):
    """One way to turn a source text into kernels."""

    target: str

    def kernel(self, source: str, name: str, defines: tuple[tuple[str, int], ...]) -> Kernel: ...


@functools.cache
def source_of(name: str) -> str:
    """Text of `name`.cu with what it needs before it."""
    before = "tile.h" if name in ("gather", "weight") else "winograd.h" if name.startswith("winograd") else ""
    parts = ["common.h", *([before] if before else []), f"{name}.cu"]
    return "\n".join((FOLDER / part).read_text(encoding="ascii") for part in parts)


# ------------------------------------------------------------------ the vendor's libraries


@dataclass(frozen=True)
class Vendor:
    """What differs between CUDA and HIP: names of libraries and functions, nothing else."""

    name: str
    compiler_libraries: tuple[str, ...]
    driver_libraries: tuple[str, ...]
    compiler_prefix: str
    load: str
    function: str
    launch: str
    code: str
    code_size: str


CUDA = Vendor(
    "cuda", ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"), ("libcuda.so.1",), "nvrtc",
    "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel", "nvrtcGetCUBIN", "nvrtcGetCUBINSize",
)  # fmt: skip
HIP = Vendor(
    "hip", ("libhiprtc.so", "libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so.5"),
    ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"), "hiprtc",
    "hipModuleLoadData", "hipModuleGetFunction", "hipModuleLaunchKernel", "hiprtcGetCode", "hiprtcGetCodeSize",
)  # fmt: skip


def _library(names: Iterable[str], *, hold: bool) -> ctypes.CDLL:
    """The first that loads: what this process has loaded already, then torch's folder, then wheels beside it, then the system's.

    A second copy of the HIP runtime in one process would not know torch's streams, so the mapped file comes first.
    """
    kind = ctypes.PyDLL if hold else ctypes.CDLL  # a launch is shorter than giving up and taking back the interpreter's lock
    tried = []
    for name in names:
        stem = name.split(".so")[0]
        for path in [*_mapped(stem), *_beside(name), name]:
            try:
                return kind(path)
            except OSError as error:
                tried.append(str(error))
    raise UnavailableError(f"none of {', '.join(names)} can be loaded: {tried[-1] if tried else 'not found'}")


def _mapped(stem: str) -> list[str]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count(" ") >= 5 and "/" in line}
    except OSError:
        return []
    # Some wheels carry a hash in the name, libnvrtc-672ee683.so.11.2; libnvrtc-builtins.so is another library.
    wanted = re.compile(rf"{stem}(-[0-9a-f]{{8}})?\.so")
    return sorted(path for path in paths if wanted.match(os.path.basename(path)))


def _beside(name: str) -> list[str]:
    torch_folder = os.path.dirname(torch.__file__)
    places = [f"{torch_folder}/lib", f"{os.path.dirname(torch_folder)}/nvidia/*/lib", f"{os.path.dirname(torch_folder)}/_rocm_sdk_*/lib"]
    return [path for place in places for path in sorted(glob.glob(f"{place}/{name}"))]


class _Compiled:
    """A function of a loaded module."""

    __slots__ = ("_current_stream", "_function", "_launch", "_module", "device")

    def __init__(self, module: ctypes.c_void_p, function: ctypes.c_void_p, launch: ctypes._FuncPointer, device: int) -> None:
        self._module = module
        self._function = function
        self._launch = launch
        self._current_stream = torch._C._cuda_getCurrentRawStream  # type: ignore[attr-defined, unused-ignore]
        self.device = device

    def launch(self, grid: Size, block: int, arguments: bytes) -> None:
        # kernelParams is an array of pointers to arguments: one structure, so one pointer. The bytes are copied by the call.
        code = self._launch(
            self._function, grid[0], grid[1], grid[2], block, 1, 1, 0, self._current_stream(self.device),
            ctypes.byref(ctypes.c_char_p(arguments)), None,
        )  # fmt: skip
        if code:
            raise KernelError(f"the launch was refused with error {code}")


class DeviceRuntime:
    """Kernels for one GPU."""

    def __init__(self, device: int) -> None:
        self.vendor = HIP if torch.version.hip else CUDA
        self.device = device
        properties = torch.cuda.get_device_properties(device)
        if self.vendor is HIP:
            self.effective = properties.gcnArchName.split(":")[0]
            self.target = os.environ.get("ROCM_PATCH_CONV_TARGET") or self.effective
            self.features = ""
        else:
            self.target = self.effective = f"sm_{properties.major}{properties.minor}"
        self._compiler = _library(self.vendor.compiler_libraries, hold=False)
        self._driver = _library(self.vendor.driver_libraries, hold=True)
        self._version = self._compiler_version()
        self._modules: dict[str, _Compiled] = {}
        self._lock = threading.Lock()

    def kernel(self, source: str, name: str, defines: tuple[tuple[str, int], ...]) -> Kernel:
        options = [f"--gpu-architecture={self.target}" if self.vendor is CUDA else f"--offload-arch={self.target}"]
        options += ["-std=c++17", "--fmad=true"] if self.vendor is CUDA else ["-std=c++17", "-O3", "-ffp-contract=fast"]
        options += [f"-D{key}={value}" for key, value in defines]
        text = "\0".join([source, name, self.vendor.name, self.target, self._version, *options])
        key = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            if key not in self._modules:
                code = cached(key)
                if code is None:
                    code = self._compile(source, options)
                    keep(key, code)
                if self.target != self.effective:
                    code = retargeted(code, self.target, self.effective)
                self._modules[key] = self._load(code, name)
            return self._modules[key]

    def _compiler_version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._compiler, name if name.startswith(self.vendor.compiler_prefix) else f"{self.vendor.compiler_prefix}{name}")
        code = function(*arguments)
        if code:
            raise KernelError(f"{function.__name__} answered {code}")

    def _compile(self, source: str, options: list[str]) -> bytes:
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
        try:
            array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
            try:
                self._call("CompileProgram", program, len(options), array)
            except KernelError as error:
                raise KernelError(f"{error}: {self._log(program)}") from error
            size = ctypes.c_size_t()
            self._call(self.vendor.code_size, program, ctypes.byref(size))
            code = ctypes.create_string_buffer(size.value)
            self._call(self.vendor.code, program, code)
            return code.raw
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call("GetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._call("GetProgramLog", program, log)
        return log.value.decode(errors="replace")[:4000]

    def _done(self, call: str, name: str, *arguments: object) -> None:
        """A call of the driver that must succeed."""
        if error := getattr(self._driver, call)(*arguments):
            raise KernelError(f"{call} answered {error} for {name} on {self.target}")

    def _load(self, code: bytes, name: str) -> _Compiled:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(self.device):
            torch.zeros(1, device=f"cuda:{self.device}")  # makes the context of this thread
            self._done(self.vendor.load, name, ctypes.byref(module), code)
            self._done(self.vendor.function, name, ctypes.byref(function), module, name.encode())
        launch = getattr(self._driver, self.vendor.launch)
        launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        launch.restype = ctypes.c_int
        return _Compiled(module, function, launch, self.device)


@functools.cache
def runtime_of(device: torch.device) -> Runtime:
    """The runtime of a device.

    Raises:
        UnavailableError: there is none.
    """
    if device.type in EXTRA:
        return EXTRA[device.type]
    if device.type != "cuda":
        raise UnavailableError(f"kernels run on GPUs, not on {device.type}")
    return DeviceRuntime(device.index or 0)


@functools.cache
def missing(device: torch.device) -> str:
    """Why our kernels cannot run on a device, or nothing."""
    try:
        runtime_of(device)
    except UnavailableError as error:
        return str(error)
    return ""


EXTRA: dict[str, Runtime] = {}
"""Runtimes by device type that others bring: the tests' emulator."""


# ------------------------------------------------------------------ what was compiled


def cache_folder() -> Path:
    """Where compiled kernels lie: $XDG_CACHE_HOME/rocm-patch/conv; nowhere for a user without a home, never in the working directory."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = os.path.expanduser("~")
    place = Path(cache) if cache.startswith("/") else Path(home if home.startswith("/") else os.devnull) / ".cache"
    return place / "rocm-patch" / "conv"


MAGIC = b"rocm-patch conv 2\n"


def cached(key: str) -> bytes | None:
    """The code of this key, or None: not there, cut short, damaged, of another key, or writable by somebody else, whose code it would be."""
    try:
        descriptor = os.open(cache_folder() / key, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe there must not hold us up
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            data = file.read()
    except OSError:
        return None
    head = len(MAGIC) + 32
    return data[head:] if data[:head] == _head(key, data[head:]) else None


def _head(key: str, code: bytes) -> bytes:
    return MAGIC + hashlib.sha256(key.encode() + code).digest()


def keep(key: str, code: bytes) -> None:
    """Store by rename, so that a reader sees all or nothing; a full or read-only disk is no error."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_head(key, code) + code)
            os.replace(temporary, folder / key)
        except OSError:
            os.unlink(temporary)
    except OSError:
        return


MACHS = {
    "gfx1010": 0x33,
    "gfx1011": 0x34,
    "gfx1012": 0x35,
    "gfx1030": 0x36,
    "gfx1031": 0x37,
    "gfx1032": 0x38,
    "gfx1034": 0x3E,
    "gfx1035": 0x3D,
    "gfx1036": 0x45,
}
"""EF_AMDGPU_MACH numbers, https://llvm.org/docs/AMDGPUUsage.html"""


def retargeted(code: bytes, target: str, effective: str) -> bytes:
    """Code compiled for the card's own target, marked as what an override makes the runtime believe: the loader compares names only.

    With HSA_OVERRIDE_GFX_VERSION in force the runtime refuses code of the true target. The instructions stay those of the true target,
    with its hazards avoided. Both must be of the gfx10 family (same kernel descriptor). Not run on an AMD GPU yet.

    Raises:
        KernelError: not an ELF file, or targets whose names differ in length.
    """
    if code[:4] != b"\x7fELF" or len(target) != len(effective) or target not in MACHS or effective not in MACHS:
        raise KernelError(f"code for {target} cannot stand in for {effective}")
    flags = struct.unpack_from("<I", code, 48)[0]
    patched = bytearray(code.replace(target.encode(), effective.encode()))
    struct.pack_into("<I", patched, 48, flags & ~0xFF | MACHS[effective])
    return bytes(patched)
