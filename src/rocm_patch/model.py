"""The values that flow from stage to stage; `errors` has what can leave them instead.

    Root -> Machine -> Diagnosis -> Plan -> Receipt        (Images and Trials join on the way)

Every value is a frozen dataclass that `codec` writes as JSON and reads back, so that any stage can start
from a file which another machine recorded. This module imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Generic, Literal, TypeVar

T = TypeVar("T")

SCHEMA: Final = 1

# ------------------------------------------------------------------ facts


@dataclass(frozen=True)
class Known(Generic[T]):
    """A fact and where it was read. `Known(None, ...)` means: looked, and it is not there."""

    value: T
    source: str


@dataclass(frozen=True)
class Unknown:
    """No answer, why not, and where it was sought. Not the same as an absence."""

    unknown: str
    source: str


Fact = Known[T] | Unknown


# ------------------------------------------------------------------ the machine


@dataclass(frozen=True)
class Atomics:
    """Whether KFD gets the PCIe atomics that it asks for before it takes a card."""

    verdict: Literal["available", "not needed", "refused", "unknown"]
    why: str
    slot: Fact[bool]
    firmware: Fact[int]
    firmware_needed: int
    """MEC firmware from which the kernel does without atomics; 0: none does, -1: never asked for."""


@dataclass(frozen=True)
class Gpu:
    """One AMD GPU. `gfx` is the silicon, never what an override pretends."""

    pci: str
    vendor_id: str
    device_id: str
    revision: Fact[int]
    name: str
    gfx: Fact[str]
    integrated: bool
    kfd_node: Fact[int | None]
    """The KFD topology node; Known(None): KFD runs and has no node for this card."""
    driver: Fact[str | None]
    render_node: Fact[str | None]
    render_access: Fact[bool]
    memory_bytes: Fact[int]
    atomics: Atomics


@dataclass(frozen=True)
class Platform:
    """The system around the card."""

    kernel: Fact[str]
    command_line: Fact[tuple[str, ...]]
    distribution: Fact[str]
    distribution_version: Fact[str]
    boot_loader: Fact[str | None]
    secure_boot: Fact[bool]
    container: Fact[str | None]
    wsl: Fact[bool]
    amdgpu_loaded: Fact[bool]
    kfd_present: Fact[bool]
    kfd_access: Fact[bool]
    groups: Fact[tuple[str, ...]]
    """Groups of the calling user."""


@dataclass(frozen=True)
class Package:
    """An installed distribution, by its dist-info folder."""

    name: str
    version: str


@dataclass(frozen=True)
class TorchInstall:
    """A torch seen from outside, without importing it."""

    label: str
    interpreter: str
    site: str
    version: Fact[str]
    build: Fact[Literal["rocm", "cuda", "cpu"]]
    toolkit: Fact[str | None]
    """ROCm (or CUDA) version that this torch was built with."""
    python: Fact[str]
    packages: tuple[Package, ...]
    """Device and ROCm packages beside it; placeholders (0.0.1.dev0) left out."""
    placeholders: tuple[str, ...]


@dataclass(frozen=True)
class RocmInstall:
    """A system-wide ROCm."""

    path: str
    version: Fact[str]


SettingKind = Literal["environment", "module", "kernel", "preload"]


@dataclass(frozen=True)
class Setting:
    """A value somebody set, and where. `value` None: the place unsets the name."""

    name: str
    value: str | None
    kind: SettingKind
    origin: str
    """process, environment-file, pam-env, profile, environment.d, systemd, shell, desktop, launcher, conda, modprobe, cmdline, loaded, preload"""
    path: str
    line: int
    reach: str
    """Who gets it: 'login', 'session', 'service NAME', 'application NAME', 'process', 'kernel', 'boot', 'every program'."""
    in_force: bool
    """True where nothing later in the same reach overrides it."""
    ours: bool = False


@dataclass(frozen=True)
class Machine:
    """All that was read about one machine; made by `machine.collect`."""

    root: str
    gpus: tuple[Gpu, ...]
    other_gpus: tuple[str, ...]
    platform: Platform
    torches: tuple[TorchInstall, ...]
    rocms: tuple[RocmInstall, ...]
    settings: tuple[Setting, ...]
    kernel_log: Fact[tuple[str, ...]]
    unread: tuple[Unknown, ...]


# ------------------------------------------------------------------ what the libraries contain


@dataclass(frozen=True)
class TargetCode:
    """Device code for one target. A count of -1: present, not counted."""

    kernels: int
    bytes: int


@dataclass(frozen=True)
class Safety:
    """How code fares on a chip: places by rule (docs/override-safety.md).

    `certain`: on every path the pattern is there; `possible`: on some path, or it depends on what the bytes do not say.
    `code` is the target that the code was made for, `functions` how many were judged and `unsafe` those with a certain place.
    """

    certain: int
    possible: int
    rules: Mapping[str, int]
    code: str = ""
    functions: int = 0
    unsafe: int = 0
    certain_rules: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Of the places by rule, those that are certain."""


@dataclass(frozen=True)
class Image:
    """One place that holds, or should hold, device code.

    `store` says how it is known: 'fatbin', 'compressed fatbin', 'kpack', 'tensile', 'object' were read from
    bytes; 'package name' and 'version tag' were concluded from names, with less certainty.
    """

    path: str
    inside: str
    store: str
    targets: Mapping[str, TargetCode]
    unread: tuple[str, ...]
    safety: Mapping[str, Safety] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def place(self) -> str:
        """The path, and behind a `!` the member of a wheel: 'x.whl!x/libx.so'."""
        return f"{self.path}!{self.inside}" if self.inside else self.path


@dataclass(frozen=True)
class Images:
    """Device code by place, in reading order."""

    files: tuple[Image, ...] = ()


# ------------------------------------------------------------------ what ran

Verdict = Literal["passed", "wrong", "crash", "hang", "stuck", "error", "skipped", "reset"]


@dataclass(frozen=True)
class Trial:
    """One probe, in one configuration, in one process of its own."""

    probe: str
    configuration: str
    dtype: str
    verdict: Verdict
    seconds: float
    detail: str
    errors: Mapping[str, float]
    """Relative L2 error by stage (forward, grad_input, ...) against a float64 reference on the CPU."""
    bounds: Mapping[str, float]
    kernel_log: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trials:
    """The results table of one probing run."""

    device: str
    device_name: str
    stack: str
    """Fingerprint in words: torch version, device, kernel."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------ what a user shows


@dataclass(frozen=True)
class Log:
    """Lines that a user shows, with the application they came from. Numbers count from 1 in what was shown."""

    lines: tuple[str, ...]
    numbers: tuple[int, ...]
    app: str = ""
    system: str = ""
    """linux, windows or wsl; empty: not told."""
    told: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Facts told beside it, by the names that `--given` takes."""


# ------------------------------------------------------------------ the diagnosis

Severity = Literal["problem", "warning", "info"]


@dataclass(frozen=True)
class Advice:
    """What to do about a finding. `remedy` is a class of the field, `id` our row, `text` exact words or commands."""

    remedy: str
    id: str
    text: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing; the same shape for every verb."""

    cause: str
    severity: Severity
    certainty: float
    why: tuple[str, ...]
    remedies: tuple[Advice, ...]


@dataclass(frozen=True)
class Feature:
    """Whether something can be used on this card with this stack."""

    answer: Literal["yes", "no", "unknown"]
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """The doctor's answer."""

    findings: tuple[Finding, ...]
    healthy: bool
    features: Mapping[str, Feature]
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------ plan and receipt

Scope = Literal["user", "system"]


@dataclass(frozen=True)
class Step:
    """A remedy and its parameters, nothing else: whoever applies derives paths and bytes from their own tables."""

    remedy: str
    scope: Scope
    parameters: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plan:
    """What shall be done, and a digest of what was there when it was decided.

    `facts` maps 'user:PATH' or 'system:PATH' of each managed path to the digest of its state (`root.State`);
    applying is refused where that has changed since.
    """

    schema: int
    steps: tuple[Step, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Receipt:
    """What a transaction did."""

    transaction: str
    outcome: Literal["applied", "already there", "rolled back", "nothing to undo", "recovered", "partly rolled back"]
    changed: tuple[str, ...]
    left: tuple[str, ...]
    """Paths left alone since somebody else changed them."""
    needs: Literal["", "login", "reboot"]
    verified: tuple[str, ...]
    undo: str
    """The POSIX script that undoes it without us; empty where there is none."""
    differences: tuple[str, ...] = ()
    """For each path that was left since somebody changed it: both versions, as a unified diff or in words."""
    unfinished: tuple[str, ...] = ()
    """What still holds our change after a rollback, each with what is to be done there. Not `left`: nobody is to remove a boot menu."""


# ------------------------------------------------------------------ knowledge rows


@dataclass(frozen=True)
class Condition:
    """When a row speaks. Every field that is set must hold; versions are PEP 440 specifiers."""

    gfx: tuple[str, ...] = ()
    not_gfx: tuple[str, ...] = ()
    rocm: str = ""
    """Range of the ROCm that torch was built with."""
    torch: str = ""
    kernel: str = ""
    system: tuple[str, ...] = ()
    """linux, windows, wsl, container."""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name -> regular expression of the whole value; the empty expression: unset."""
    python: str = ""
    app: str = ""
    """Regular expression, searched for in the name of the application."""
    signs: tuple[str, ...] = ()
    """All must be there: ids of signatures found in the same log, or words of `diagnose.signs`; 'a|b': one of them."""
    no_signs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """One observation about a remedy, with the place where it can be checked."""

    remedy: str
    outcome: Literal["works", "partial", "no effect", "harmful"]
    kind: Literal["measured", "upstream source", "maintainer", "independent report", "inference"]
    when: Condition
    source: str
    date: str
    note: str


@dataclass(frozen=True)
class RemedyRow:
    """A remedy. Its status is derived from evidence, never written here."""

    id: str
    remedy: str
    kind: Literal[
        "environment", "venv", "autoload", "modprobe", "cmdline", "preload", "prefix", "permissions", "neutralise", "run", "manual"
    ]  # fmt: skip
    level: Literal["passive", "interactive", "disruptive"]
    scope: Scope
    title: str
    text: str
    commands: tuple[str, ...]
    when: Condition
    parameters: tuple[str, ...] = ()
    by_name: bool = False
    """Never recommended, and yet planned for whoever names it: what users arrive with must work, be shown for what it is, and go again."""
    instead: tuple[str, ...] = ()
    """Remedies to use in its place; told with every plan of it."""


@dataclass(frozen=True)
class SettingEffect:
    """What a value of a setting does on the machines of a condition. The first effect that fits speaks."""

    values: str
    """Regular expression of the whole value; empty: any."""
    when: Condition
    effect: Literal["none", "harmful", "slows", "diagnostic", "legitimate"]
    text: str
    sources: tuple[str, ...]
    severity: Literal["", "problem", "warning", "info"] = ""
    """Empty: by effect: none and slows warn, harmful is a problem, diagnostic is info, legitimate is silent."""


@dataclass(frozen=True)
class SettingRow:
    """An environment variable, module parameter or file that users arrive with."""

    name: str
    kind: SettingKind
    about: str
    may_set: str
    """Regular expression of the values that a plan of ours may set; empty: none."""
    neutral: str
    """The value that equals not setting it, for places that can only set; empty: there is none.
    '{own}' stands for the card's own version as M.m.s."""
    effects: tuple[SettingEffect, ...]


@dataclass(frozen=True)
class ProfileRow:
    """A set of environment settings that a recipe made known, under a name of ours. What each does is in the settings' rows."""

    id: str
    about: str
    set: tuple[str, ...]
    """NAME=VALUE; only what the settings' rows allow to set."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a line means under a condition. The first reading of a signature that fits speaks."""

    cause: str
    certainty: float
    meaning: str
    severity: Severity = "problem"
    when: Condition = field(default_factory=Condition)
    remedies: tuple[str, ...] = ()
    next_command: str = ""
    """What would make it surer."""
    avoid: str = ""


@dataclass(frozen=True)
class Signature:
    """A line in a log that means something, on some cards. Letters match in either case.

    A row without readings is a sign that other rows' conditions may name.
    """

    id: str
    pattern: str
    sample: str
    sources: tuple[str, ...]
    readings: tuple[Reading, ...] = ()
    shows: Literal["", "fault", "success", "report"] = ""
    """Whether the line says that something went wrong or right, or belongs to a report in which general words mean neither."""
    kernel: bool = False
    """A line of the kernel's log: `doctor` looks for it there, too."""
    general: bool = False
    """A row in plain words, which the samples of others may match as well."""


@dataclass(frozen=True)
class DeviceRow:
    """One PCI device id and the names it is sold under."""

    id: str
    names: tuple[str, ...]
    revisions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Exact names by PCI revision, two hexadecimal digits."""


@dataclass(frozen=True)
class GpuRow:
    """A chip. Keyed by its LLVM target; found by PCI id or by KFD's `gfx_target_version`."""

    gfx: str
    codename: str
    architecture: str
    gfx_target_version: int
    generic: str
    scope: bool
    integrated: bool
    atomics_free_firmware: int
    """MEC firmware from which KFD does without PCIe atomics; 0: none does, -1: KFD never asks."""
    sources: tuple[str, ...]
    devices: tuple[DeviceRow, ...]
    missing_instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class WheelRow:
    """One line of wheels on an index: what to ask pip for. `{gfx}` stands for the target."""

    id: str
    index: str
    rocm: str
    torch: str
    packages: tuple[str, ...]
    expect: tuple[str, ...]
    """Distributions that must be there afterwards, placeholders not counting."""
    gfx: tuple[str, ...]
    python: str
    download_megabytes: int
    checked: str
    sources: tuple[str, ...]
    remedy: str = ""
    """The one remedy that these wheels are for; empty: they are what a card needs by itself."""
    extra_index: str = ""
    """A second index for what the first lacks; only beside pins that no other index can have (`+rocm5.2`)."""
    glibc_below: str = ""
    """The first C library that refuses to load them."""


@dataclass(frozen=True)
class ContentRow:
    """What wheels of an origin contain, by version tag: used where no library can be read."""

    id: str
    rocm: str
    """Range of the ROCm in the version's local tag."""
    split: bool
    """True: the device code comes in packages of its own; without one there is none."""
    targets: tuple[str, ...]
    certainty: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class LauncherRow:
    """A program known to set variables of its own: shell-style files below a home."""

    name: str
    paths: tuple[str, ...]
    """Patterns as of fnmatch, relative to a home or to a folder in it."""
    sources: tuple[str, ...]


JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """What `record` writes and `--machine FILE` reads: a machine and what its libraries contain."""

    schema: int
    tool: str
    machine: Machine
    images: Images
