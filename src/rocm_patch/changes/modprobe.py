"""Options of the amdgpu module: all that we set stands in one drop-in of ours in /etc/modprobe.d.

What such an option does on these cards is said by the evidence, and for most of them it is nothing. They can be had by
name, since people arrive with them: checked against the kernel's own list first, and gone again without a trace.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch.changes import image_owners, initramfs, kernel_parameters, modprobe_config
from rocm_patch.changes.kind import NOTE, TO_DO, Change, Held, Kind, Look, Tables, Unfinished, Unseen, Work
from rocm_patch.changes.modprobe_config import Option
from rocm_patch.errors import FormatError, RefusedError, RocmPatchError
from rocm_patch.model import Known, Step, Unknown
from rocm_patch.root import Root, State
from rocm_patch.run import run

MODULE: Final = "amdgpu"
PATH: Final = "/etc/modprobe.d/zz-rocm-patch.conf"
REMEDIES: Final[Mapping[str, tuple[str, str]]] = {
    "mtype-local": ("mtype_local", "1"),
    "noretry": ("noretry", "0"),
    "vm-fragment-size": ("vm_fragment_size", "9"),
    "gpu-recovery": ("gpu_recovery", "1"),
    "lockup-timeout": ("lockup_timeout", ""),
    "cwsr-disable": ("cwsr_enable", "0"),
}
"""Remedy to parameter and to the value that the word on the street says; empty: there is none, it has to be given."""
MODPROBE: Final = ("/usr/sbin/modprobe", "/sbin/modprobe", "/usr/bin/modprobe")
_HEAD: Final = """\
# Options of rocm-patch for the amdgpu driver. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
"""
_LINE: Final = re.compile(r"options amdgpu (?P<name>[a-z][a-z0-9_]*)=(?P<value>[A-Za-z0-9_.,:=+-]+)")
_MEANING: Final = re.compile(r"# (?P<name>[a-z][a-z0-9_]*)=(?P<value>\S+) is \"(?P<meaning>[A-Za-z0-9_ ./-]{1,60})\" in the words of linux \S+")


@dataclass(frozen=True)
class Wanted:
    """The value of one parameter. `remark`: the whole line above it, with the kernel's own word for the value."""

    value: str
    remark: str = ""


# ------------------------------------------------------------------ validate


def validate(step: Step, tables: Tables) -> None:
    """Check a step against the tables: which remedy, and a value that we would ever write.

    Raises:
        RefusedError: neither.
    """
    name, value = _option(step)
    row = tables.settings.get(f"{MODULE}.{name}")
    if row is None or row.kind != "module" or not row.may_set:
        raise RefusedError(f"{MODULE}.{name} is no module option that our tables allow to set")
    if not re.fullmatch(row.may_set, value):
        raise RefusedError(f"{MODULE}.{name}={value!r} is not a value that our tables allow to set", f"they allow {row.may_set}")


def _option(step: Step) -> tuple[str, str]:
    if step.remedy not in REMEDIES:
        raise RefusedError(f"{step.remedy!r} is no remedy that sets a module option")
    name, default = REMEDIES[step.remedy]
    given = step.parameters.get("value", ())
    if set(step.parameters) - {"value"} or len(given) > 1:
        raise RefusedError(f"remedy {step.remedy}: it has one parameter, value, and that has one value")
    if not given and not default:
        raise RefusedError(f"remedy {step.remedy}: which value?", f"name one: --set value=..., for {MODULE}.{name}")
    return name, given[0] if given else default


# ------------------------------------------------------------------ render


def render(steps: Sequence[Step], look: Look) -> tuple[Change, ...]:
    """One drop-in with what is in force of ours and what these steps add, each value checked against the kernels here.

    Raises:
        RefusedError: a file of that name is there and is not as we left it; a kernel would not take a value; the
            machine's image is not ours to make.
    """
    now = look.now(PATH)
    held = dict[str, Wanted]()
    if now.kind != "absent":
        if not (look.ours(PATH) if look.journal_read else reads_as_ours(now)):
            hint = f"look at it, and move it away if it is not needed: sudo mv {PATH} ~/"
            raise RefusedError(f"{PATH} is there and is not as rocm-patch left it; it stays as it is", hint)
        held = parse(now.data)
    asked = dict(_option(step) for step in steps)
    root = Root(look.ground.anchor)
    modules = [kernel_parameters.read(root, kernel.version, MODULE) for kernel in kernel_parameters.kernels(root, MODULE)]
    wanted = dict(held)
    for name, value in asked.items():
        for module in modules:
            kernel_parameters.check(module, name, value)
        if name not in held or held[name].value != value:
            wanted[name] = Wanted(value, _remark(modules[0], name, value))
    line = f"options {MODULE} " + " ".join(f"{name}={value}" for name, value in sorted(asked.items()))
    for module in modules:
        if module.builtin:
            words = " ".join(f"{MODULE}.{name}={value}" for name, value in sorted(asked.items()))
            hint = f"its options stand on the kernel's command line: {words}"
            raise RefusedError(f"linux {module.kernel} has {MODULE} built in, and modprobe.d says nothing to it", hint)
    refused = image_owners.refusal(root, line)
    if refused is not None:
        raise refused
    data = text_of(wanted).encode()
    return (Change(PATH, now if now.data == data else State("file", 0o644, os.geteuid(), os.getegid(), data)),)


def _remark(module: kernel_parameters.Module, name: str, value: str) -> str:
    meaning = kernel_parameters.meaning(module.parameters[name], value)
    return f'# {name}={value} is "{meaning}" in the words of linux {module.kernel}' if meaning else ""


def text_of(options: Mapping[str, Wanted]) -> str:
    """The drop-in's text; `parse` reads it back."""
    lines = [line for name, item in sorted(options.items()) for line in (item.remark, f"options {MODULE} {name}={item.value}") if line]
    return _HEAD + "".join(f"{line}\n" for line in lines)


def parse(data: bytes) -> dict[str, Wanted]:
    """Read a drop-in of ours.

    Raises:
        FormatError: it has a line that we do not write.
    """
    options, remark = dict[str, Wanted](), ""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("the drop-in is not ASCII") from error
    for number, line in enumerate(text.removeprefix(_HEAD).split("\n")[:-1], 1):
        if _MEANING.fullmatch(line) and not remark:
            remark = line
        elif found := _LINE.fullmatch(line):
            options[found["name"]] = Wanted(found["value"], remark)
            remark = ""
        else:
            raise FormatError(f"the drop-in's line {number} is not one of ours")
    return options


def reads_as_ours(now: State) -> bool:
    """Whether a file is exactly what we would write: all that can be told without the journal."""
    try:
        return now.kind == "file" and text_of(parse(now.data)).encode() == now.data
    except FormatError:
        return False


def also(_steps: Sequence[Step], look: Look) -> tuple[str, ...]:
    """The images, without a look into them: that takes a while, and root's side takes it in any case."""
    root = Root(look.ground.anchor)
    paths = [path for kernel in kernel_parameters.kernels(root, MODULE) for path in initramfs.paths_of(root, kernel.version)]
    kept = f"today's is kept beside it ({initramfs.COPY}), with an entry in GRUB's menu where that can be"
    return tuple(f"{path}: made anew where it holds {MODULE}; {kept}" for path in dict.fromkeys(paths))


# ------------------------------------------------------------------ activate, verify


def activate(_steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[Change, ...]:
    """Bring the images up to date that hold the driver. Older kernels' images are left as they are: they are the way back."""
    return tuple(initramfs.renew(work, PATH, _images(work)))


def _images(work: Work) -> list[initramfs.Image]:
    """On the way there the kernels that would boot; on the way back every kernel, for a package may have made its image since."""
    root = Root(work.ground.anchor)
    versions = root.list(kernel_parameters.MODULES) if work.back else [kernel.version for kernel in kernel_parameters.kernels(root, MODULE)]
    return [initramfs.look(work, path, version, PATH) for version in versions for path in initramfs.paths_of(root, version)]


def verify(_steps: Sequence[Step], _changes: Sequence[Change], work: Work) -> tuple[str, ...]:
    """Read the file back, let the system's modprobe read it, and say who else sets the same and what the images hold.

    Raises:
        RocmPatchError: modprobe complains about our file, or does not see what is in it.
    """
    if work.back:
        return tuple(_told_back(image, work) for image in _images(work) if image.driver or image.of_booster or image.unread)
    root = Root(work.ground.anchor)
    options = parse(work.tree.state(work.ground.at(PATH)).data)
    others = modprobe_config.read(root, MODULE)
    said = [f"{PATH}: {MODULE}.{name}={item.value}" for name, item in sorted(options.items())]
    for kernel in kernel_parameters.kernels(root, MODULE):
        module = kernel_parameters.read(root, kernel.version, MODULE)
        said.append(f"linux {kernel.version} ({kernel.why} here): {module.path} has {', '.join(sorted(options))}, and takes these values")
    said.append(_ask_modprobe(root, options))
    said += [f"{NOTE}{line}" for name in sorted(options) for line in rivals(name, others.of(name))]
    said += [f"{NOTE}not read: {place}" for place in others.unread]
    images = _images(work)
    said += [initramfs.marked(work, PATH, image) for image in images] or [
        f"{TO_DO}/boot: no initramfs of these kernels was found; if /boot is a partition of its own that is not mounted, mount it and apply again"
    ]
    said += [f"{NOTE}{line}" for image in images if (line := initramfs.told_of_copy(work, image))]
    return tuple(said)


def _told_back(image: initramfs.Image, work: Work) -> str:
    line, now = initramfs.told(work, PATH, image), work.tree.state(work.ground.at(PATH))
    if image.unread:
        return Unseen(line)
    return Unfinished(line) if initramfs.stale(image, now.data if now.kind == "file" else None) else line


def _ask_modprobe(root: Root, options: Mapping[str, Wanted]) -> str:
    """`modprobe -c` ends with 0 whatever it thinks: what it prints is what counts."""
    program = next((path for path in MODPROBE if os.path.exists(path)), None)
    if program is None:
        return f"{NOTE}{PATH}: no modprobe is installed here; read by rocm-patch's own parser alone"
    folders = [word for folder in modprobe_config.FOLDERS if root.is_folder(folder) for word in ("-C", root.host(folder))]
    ended = run([program, "-c", *folders], timeout=30, output_limit=16 << 20)
    complaints = [line for line in ended.err.decode("utf-8", "replace").splitlines() if os.path.basename(PATH) in line]
    seen = set(ended.out.decode("utf-8", "replace").splitlines())
    missing = [line for name, item in options.items() if (line := f"options {MODULE} {name}={item.value}") not in seen]
    if complaints or missing:
        raise RocmPatchError(f"modprobe does not read {PATH} as it is meant: {'; '.join(complaints or missing)}")
    return f"{PATH}: read by {program} without complaint"


def rivals(name: str, given: Sequence[Option]) -> list[str]:
    """Who else sets a parameter, and who wins: the last one."""
    foreign = [option for option in given if option.path != PATH]
    if not foreign:
        return []
    last = given[-1]
    verdict = "ours comes last and wins" if last.path == PATH else f"{last.value} by {last.where} comes last and wins"
    return [
        f"{MODULE}.{name}: also set to {option.value} by {option.where}{', which comes last and wins' if option is last else f'; {verdict}'}"
        for option in foreign
    ]


# ------------------------------------------------------------------ after the restart


def in_force(steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Compare what we set with the running kernel: seen, not yet, or another value and why. Reads only, as any user."""
    now = look.now(PATH)
    if not reads_as_ours(now):
        options = {} if now.kind != "absent" else dict(_option(step) for step in steps)
    else:
        options = {name: item.value for name, item in parse(now.data).items()}
    if not look.ground.live:
        return tuple(
            Held(f"{MODULE}.{name}", value, None, _place(name), None, "is seen once that system runs") for name, value in sorted(options.items())
        )
    root = Root(look.ground.anchor)
    others = modprobe_config.read(root, MODULE)
    written = os.stat(root.host(PATH)).st_mtime if now.kind == "file" else 0.0
    since_start = written > _started(root)
    loaded = root.exists(f"sys/module/{MODULE}")
    return tuple(
        compare(name, value, root.word(_place(name)), others.of(name), since_start=since_start, loaded=loaded)
        for name, value in sorted(options.items())
    )


def _place(name: str) -> str:
    return f"/sys/module/{MODULE}/parameters/{name}"


def _started(root: Root) -> float:
    """When the running kernel started, in seconds since 1970; 0 where it does not say."""
    text = getattr(root.text("proc/stat"), "value", None) or ""
    found = re.search(r"^btime (\d+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def compare(name: str, value: str, answer: Known[str | None] | Unknown, given: Sequence[Option], *, since_start: bool, loaded: bool) -> Held:
    """One option against what the running kernel shows of it. `given`: who sets it, in modprobe's order."""
    what, place = f"{MODULE}.{name}", _place(name)
    if not loaded:
        return Held(what, value, None, place, False, f"{MODULE} is not loaded")
    if isinstance(answer, Unknown):
        return Held(what, value, None, place, None, f"cannot be read: {answer.unknown}")
    if answer.value is None:
        return Held(what, value, None, place, False, "the running kernel has no such parameter")
    if same(answer.value, value):
        return Held(what, value, answer.value, place, True)
    last = next(iter(reversed(given)), None)
    if last is not None and last.path != PATH:
        why = f"{last.where} comes last and sets {last.value}"
    elif since_start:
        why = "not yet: restart"
    else:
        why = "the driver was loaded without our file: from an initramfs that is older, or by hand"
    return Held(what, value, answer.value, place, False, why)


def same(one: str, other: str) -> bool:
    """Whether two texts are the same value; the kernel shows truth as Y and N."""
    truth = {"Y": "1", "y": "1", "N": "0", "n": "0"}
    return truth.get(one, one) == truth.get(other, other)


KIND: Final = Kind("modprobe", ("system",), "reboot", validate, render, activate, verify, in_force=in_force, asked_back=True, also=also)
