"""One probing run: find the device, walk the rows, run each in its own process, remember, judge, go on or stop."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from rocm_patch import codec
from rocm_patch.errors import RefusedError, UsageError
from rocm_patch.model import Trial, Trials
from rocm_patch.probe import parent, verdict
from rocm_patch.probe.kernel_log import KernelLog
from rocm_patch.probe.record import Key, Records, Remembered, Saved, boot_id, key_of
from rocm_patch.probe.table import ANY, FOLDER, LEVELS, Configuration, Level, Probe, Table, load

DEVICE: Final = re.compile(r"auto|cpu|(cuda|hip)(:\d+)?")
DEVICE_PROBE: Final = "device"
SENTINEL: Final[Key] = ("elementwise", ANY, "float32")
SENTINEL_DEADLINE: Final = 45.0
HANGS: Final = 3
"""After so many hangs in one configuration the rest of it is skipped: the answer is known and each costs its deadline."""
KEPT: Final = ("passed", "wrong", "crash", "hang")
MEMORY: Final = 8 << 30
SETTLE: Final = 0.5
"""The kernel reports a fault a little later than the process notices it."""
RESTART: Final = "restart before probing again"
TELLING: Final = re.compile(
    r"(HSA|HSAKMT|HIP|ROCR|ROCBLAS|HIPBLASLT|MIOPEN|AMD|AMDGCN|GPU|CUDNN|CUBLAS|TORCH|PYTORCH)_\w+"
    r"|CUDA_(VISIBLE|LAUNCH|MODULE|DEVICE)\w+|NVIDIA_TF32_OVERRIDE|LD_PRELOAD|LD_LIBRARY_PATH"
)
"""Variables that make another stack of the same libraries."""


@dataclass(frozen=True)
class Kit:
    """What is run: the rows and the script of the child. Tests bring their own."""

    table: Table = field(default_factory=load)
    child: str = os.path.join(FOLDER, "child.py")
    sentinel_deadline: float = SENTINEL_DEADLINE

    def definition(self) -> str:
        """Changes when the meaning of a result may have changed."""
        with open(self.child, "rb") as file:
            return hashlib.sha256(file.read() + codec.dumps(self.table).encode()).hexdigest()[:16]


def run(
    interpreter: str,
    device: str = "auto",
    *,
    only: Sequence[str] = (),
    configurations: Sequence[str] = (),
    quick: bool = False,
    allow: Level = "interactive",
    state_home: str,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[Trial | str], None] | None = None,
    again: bool = False,
    resume: bool = True,
    kit: Kit | None = None,
) -> Trials:
    """Probe one stack: this interpreter's torch, this device, this environment.

    Args:
        interpreter: the Python whose torch is meant; any version from 3.8 on.
        device: auto (the GPU of that torch if one answers, else the CPU), cpu, cuda, hip; the last two also with :N.
        only: ids or workloads of probes; none named: all.
        configurations: ids; none named: all of this kind of device. Work that no configuration changes always runs.
        quick: the small set, float32 only.
        allow: the highest level that may run; disruptive probes (convolution and batch norm on a HIP device) may hang
            the GPU or reset the machine and are skipped below that.
        state_home: $XDG_STATE_HOME; records go to rocm-patch-probes in it, and nothing is written elsewhere.
        environment: all of the children's environment; ours where None.
        progress: told in words what starts, and each result.
        again: run everything afresh, also what took the machine down before.
        resume: keep results that this stack already has in this boot.
        kit: other rows or another child; for tests.

    Raises:
        RefusedError: through sudo, or while another probe runs.
        UsageError: an unknown device, probe or configuration, or an interpreter that cannot be started.
    """
    kit = kit or Kit()
    around = dict(os.environ if environment is None else environment)
    _refuse_foreign_root(around)
    interpreter = _check(kit.table, interpreter, device, only, configurations, allow, around)
    records = Records(state_home, boot_id())
    with records.locked(gpu=device != "cpu"):
        log = KernelLog(environment=around)
        try:
            session = _Session(kit, records, log, interpreter, around, progress or (lambda _: None), allow, again, resume)
            return session.walk(device, only, configurations, quick)
        finally:
            log.close()


def _refuse_foreign_root(environment: Mapping[str, str]) -> None:
    for name in ("SUDO_UID", "DOAS_USER", "PKEXEC_UID"):
        if os.geteuid() == 0 and (name in os.environ or name in environment):
            why = f"a probe runs code from a user's environment and is never run as root for them ({name} is set)"
            raise RefusedError(why, "run it without sudo")


def _check(
    table: Table, interpreter: str, device: str, only: Sequence[str], configurations: Sequence[str], allow: str, environment: Mapping[str, str]
) -> str:
    if not DEVICE.fullmatch(device):
        raise UsageError(f"unknown device {device!r}", "auto, cpu, cuda, hip, cuda:1, hip:1")
    if allow not in LEVELS:
        raise UsageError(f"unknown level {allow!r}", ", ".join(LEVELS))
    known = {row.id for row in table.probe} | {row.workload for row in table.probe}
    for name in only:
        if name not in known:
            raise UsageError(f"unknown probe {name!r}", ", ".join(row.id for row in table.probe))
    known = {row.id for row in table.configuration}
    for name in configurations:
        if name not in known:
            raise UsageError(f"unknown configuration {name!r}", ", ".join(row.id for row in table.configuration))
    found = shutil.which(interpreter, path=environment.get("PATH", os.defpath))
    if found is None:
        raise UsageError(f"{interpreter} is no program that can be run")
    return os.path.abspath(found)


@dataclass(frozen=True)
class _Row:
    probe: Probe
    configuration: Configuration
    dtype: str

    @property
    def key(self) -> Key:
        return self.probe.id, self.configuration.id, self.dtype

    @property
    def words(self) -> str:
        return " ".join(part for part in self.key if part not in (ANY, "none"))


class _Session:
    def __init__(
        self,
        kit: Kit,
        records: Records,
        log: KernelLog,
        interpreter: str,
        environment: Mapping[str, str],
        progress: Callable[[Trial | str], None],
        allow: Level,
        again: bool,
        resume: bool,
    ) -> None:
        self.kit, self.records, self.log, self.progress = kit, records, log, progress
        self.interpreter, self.environment, self.allow, self.again, self.resume = interpreter, environment, allow, again, resume
        self.kind, self.torch_device, self.stack = "cpu", "cpu", ""
        self.notes = [log.note] if log.note else []
        self.facts: Mapping[str, Any] = {}
        self.dead = ""
        """Why nothing more can run; empty while the device answers."""
        self.hangs: dict[str, int] = {}
        self.caches: dict[str, int] = {}
        self.memory = _memory_limit()

    # -- the walk

    def walk(self, device: str, only: Sequence[str], configurations: Sequence[str], quick: bool) -> Trials:
        self._look_back()
        first = self._find_device(device)
        rows = self._rows(only, configurations, quick)
        saved = self.records.saved(self.stack, self.kit.definition())
        before = {key_of(trial): trial for trial in saved.trials if trial.verdict in KEPT} if self.resume and not self.again else {}
        results = {key_of(first): first}
        kept = 0
        for row in rows:
            if row.key in before:
                trial, kept = before[row.key], kept + 1
            else:
                trial = self._one(row)
                if trial.verdict != "skipped":
                    others = tuple(item for item in saved.trials if key_of(item) != row.key)
                    saved = Saved(saved.schema, saved.boot, saved.definition, saved.stack, (*others, trial))
                    self.records.save(saved)
                    self.records.ended()
            results[row.key] = trial
            self.progress(trial)
        if kept:
            self.notes.append(f"{kept} results are from an earlier run of the same stack in this boot")
        name = str(self.facts.get("name", "")) + (f" ({self.facts['arch']})" if self.facts.get("arch") else "")
        trials = Trials(self._device_word(device), name, self.stack, tuple(results.values()), tuple(self.notes))
        self.records.finish(trials)
        return trials

    def _look_back(self) -> None:
        """Did a run before this one take the machine down?"""
        left = self.records.unfinished()
        if left is None:
            return
        words = " ".join(part for part in (left.probe, left.configuration, left.dtype) if part not in (ANY, "none"))
        if left.boot and left.boot == self.records.boot:
            self.notes.append(f"the run before this one was interrupted during {words}; it runs again")
        else:
            self.records.remember(Remembered(left.boot, left.stack, left.probe, left.configuration, left.dtype, "reset"))
            self.notes.append(f"the machine went down during {words}")
        self.progress(self.notes[-1])
        self.records.ended()

    def _find_device(self, device: str) -> Trial:
        """Ask torch what it has, in a child like any other, since already that can hang."""
        row = _Row(self.kit.table.find(DEVICE_PROBE), self._any(), "none")
        self.kind, self.torch_device = ("cpu", device) if device == "cpu" else ("gpu", device)
        self.stack = f"{self.interpreter}, {device}{_settings(self.environment)}"
        trial = self._one(row)
        self.records.ended()
        if trial.verdict == "passed":
            wanted, _, index = device.partition(":")
            found = str(self.facts["kind"])
            built = str(self.facts["built"])
            if wanted not in ("auto", found):
                count = self.facts["count"]
                have = "no GPU support" if built == "cpu" else f"{count} {built} devices" if count else f"no {built} device that answers"
                trial = replace(trial, verdict="error", detail=f"torch {self.facts['torch']} has {have}; asked for was {device}")
                self.dead = f"there is no {device} to probe"
            elif wanted == "auto" and found != built:
                why = f"torch {self.facts['torch']} is built for {built} and no device answers it"
                self.notes.append(f"{why}; the CPU was probed, which says nothing about a card")
            self.kind = found if not self.dead else wanted
            self.torch_device = "cpu" if found == "cpu" else f"cuda:{index or 0}"
        else:
            self.dead = self.dead or f"the device could not be found: {trial.verdict}, {trial.detail}"
            self.kind = device.partition(":")[0] if device != "auto" else str(self.facts.get("built", "cpu"))
        self.stack = self._words()
        self.progress(trial)
        return trial

    def _rows(self, only: Sequence[str], configurations: Sequence[str], quick: bool) -> list[_Row]:
        rows = list[_Row]()
        for configuration in (self._any(), *self.kit.table.configurations(self.kind)):
            if configurations and configuration.id not in (ANY, *configurations):
                continue
            for probe in self.kit.table.probe:
                if probe.id == DEVICE_PROBE or (only and probe.id not in only and probe.workload not in only) or (quick and not probe.quick):
                    continue
                if configuration.id not in (probe.configurations or tuple(row.id for row in self.kit.table.configurations(self.kind))):
                    continue
                rows += [_Row(probe, configuration, dtype) for dtype in probe.dtypes if not quick or dtype == "float32"]
        return rows

    # -- one row

    def _one(self, row: _Row) -> Trial:
        reason = self._why_not(row)
        if reason:
            return reason
        self.progress(f"{row.words} ...")
        self.records.begin(row.key, self.stack)
        self.log.mark()
        trial = self._execute(row, row.probe.deadline)
        gpu = self.kind != "cpu"
        if trial.verdict != "passed" and gpu:
            time.sleep(SETTLE)
        lines = self.log.lines(expensive=trial.verdict != "passed")
        self._draw_conclusions(row, trial, gpu)
        if self.again and trial.verdict not in ("stuck", "reset"):
            self.records.forget(row.key, self.stack)
        lines += self.log.lines(expensive=trial.verdict in ("crash", "hang", "stuck"))  # what came while the sentinel ran
        return replace(trial, kernel_log=lines)

    def _why_not(self, row: _Row) -> Trial | None:
        def no(reason: str, word: Any = "skipped") -> Trial:
            return Trial(row.probe.id, row.configuration.id, row.dtype, word, 0.0, reason, MappingProxyType({}), MappingProxyType({}))

        if not self.again:
            for item in self.records.memory().items:
                if item.verdict == "reset" and (item.key, item.stack) == (row.key, self.stack):
                    return no("the machine went down (or was switched off) during it; it runs again only when asked to", "reset")
                if item.verdict == "stuck" and item.boot and item.boot == self.records.boot and self.kind != "cpu":
                    self.dead = f"{item.probe} is stuck in the kernel since this boot; {RESTART}"
        if self.dead:
            return no(self.dead)
        level = row.probe.level_on(self.kind)
        if LEVELS.index(level) > LEVELS.index(self.allow):
            return no(f"{level}: it may hang the GPU or reset the machine; not allowed" if level == "disruptive" else f"{level}; not allowed")
        if self.hangs.get(row.configuration.id, 0) >= HANGS:
            return no(f"{HANGS} probes hung in this configuration already")
        return None

    def _draw_conclusions(self, row: _Row, trial: Trial, gpu: bool) -> None:
        """After a crash or a hang: does the GPU still answer?"""
        if trial.verdict == "stuck":
            self.dead = f"{row.words} is stuck in the kernel; {RESTART}"
            self.records.remember(Remembered(self.records.boot, self.stack, *row.key, "stuck"))
        if trial.verdict == "hang":
            self.hangs[row.configuration.id] = self.hangs.get(row.configuration.id, 0) + 1
        if trial.verdict in ("crash", "hang"):
            self.caches[row.configuration.id] = self.caches.get(row.configuration.id, 0) + 1  # what it cached may be broken
        if not gpu or row.probe.id == DEVICE_PROBE:
            return
        if row.key == SENTINEL and trial.verdict == "error":
            self.dead = f"not even the simplest probe runs: {trial.detail}"
        elif trial.verdict in ("crash", "hang"):
            self.progress("does the GPU still answer? ...")
            probe = self.kit.table.find(SENTINEL[0])
            sentinel = self._execute(_Row(probe, self._any(), SENTINEL[2]), min(probe.deadline, self.kit.sentinel_deadline))
            if sentinel.verdict != "passed":
                self.dead = f"the GPU no longer answers; {RESTART}"
                self.notes.append(f"after {row.words} ({trial.verdict}) the GPU no longer answers: {sentinel.verdict}, {sentinel.detail}")

    def _execute(self, row: _Row, deadline: float) -> Trial:
        """Run it in a fresh process and judge."""
        folder = self.records.scratch("work")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)
        spec = {
            "workload": row.probe.workload, "device": self.torch_device, "dtype": row.dtype, "size": row.probe.size, "channels": row.probe.channels,
            "batch": row.probe.batch, "channels_last": row.probe.channels_last, "repeats": row.probe.repeats, "tolerance": row.probe.tolerance,
            "cudnn": row.configuration.cudnn, "seed": zlib.crc32(f"{row.probe.id} {row.dtype}".encode()), "deadline": deadline,
        }  # fmt: skip
        ending = parent.execute(
            lambda descriptor: [self.interpreter, "-I", "-B", self.kit.child, json.dumps({**spec, "fd": descriptor})],
            deadline=deadline,
            environment=self._child_environment(row.configuration),
            folder=folder,
            memory=self.memory,
            limit_address_space=self.kind == "cpu",
        )
        if row.probe.id == DEVICE_PROBE:
            self.facts = verdict.listen(ending.results, ending.results_cut).facts
        trial = verdict.judge(row.probe, row.configuration.id, row.dtype, ending, deadline)
        if row.probe.id == DEVICE_PROBE and trial.verdict == "passed" and not {"kind", "built", "torch", "count", "name"} <= set(self.facts):
            return replace(trial, verdict="error", detail="it ended without telling the device")
        return trial

    def _child_environment(self, configuration: Configuration) -> dict[str, str]:
        """The caller's environment, the configuration, and caches of our own: what an old cache holds must not mask anything."""
        private = dict[str, str]()
        if self.kind not in ("cpu", "cuda"):
            folder = self.records.scratch(f"cache-{configuration.id}-{self.caches.get(configuration.id, 0)}")
            for name, part in (("MIOPEN_USER_DB_PATH", "db"), ("MIOPEN_CUSTOM_CACHE_DIR", "kernels"), ("AMD_COMGR_CACHE_DIR", "comgr")):
                private[name] = os.path.join(folder, part)
                os.makedirs(private[name], mode=0o700, exist_ok=True)
        return {**self.environment, **private, **configuration.environment}

    # -- words

    def _any(self) -> Configuration:
        return next(row for row in self.kit.table.configuration if row.id == ANY)

    def _device_word(self, device: str) -> str:
        index = device.partition(":")[2]
        return f"{self.kind}:{index}" if index and self.kind in ("cuda", "hip") else self.kind

    def _words(self) -> str:
        if "torch" not in self.facts:
            return f"unknown torch of {self.interpreter}, Linux {platform.release()}{_settings(self.environment)}"
        facts = self.facts
        built = " ".join(filter(None, (str(facts["built"]), str(facts.get("toolkit", "")))))
        on = " ".join(filter(None, (self.kind, str(facts.get("name", "")), str(facts.get("arch", "")))))
        return f"torch {facts['torch']} ({built}, {facts.get('git', '')}), {on}, Linux {platform.release()}{_settings(self.environment)}"


def _settings(environment: Mapping[str, str]) -> str:
    """Variables that change what the same libraries do, in words."""
    told = [f"{name}={_short(value)}" for name, value in sorted(environment.items()) if TELLING.fullmatch(name)]
    return "; with " + " ".join(told) if told else ""


def _short(value: str) -> str:
    """A long value by its beginning and its digest: the fingerprint is read by people too."""
    return value if len(value) <= 80 else f"{value[:60]}[{hashlib.sha256(value.encode()).hexdigest()[:8]}]"


def _memory_limit() -> int:
    """Three quarters of what is free, at most 8 GiB: a probe needs far less, and the desktop shall live."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return MEMORY
    return min(MEMORY, max(1 << 30, free * 3 // 4))
