"""What the rules ask of a machine: the cards in scope, what each torch covers, which override is in force, what to advise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rocm_patch.diagnose.once import once
from rocm_patch.images.coverage import base, forced, loadable
from rocm_patch.images.source import STORES
from rocm_patch.knowledge import Knowledge
from rocm_patch.knowledge.conditions import Context, in_range, in_scope, parse_version, recommended
from rocm_patch.model import Advice, Finding, Gpu, Image, Images, Known, Log, Machine, Setting, Severity, TorchInstall, Trials, Unknown

if TYPE_CHECKING:
    from rocm_patch.diagnose.symptoms import Seen

OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"
SOUND = {
    **dict.fromkeys(("gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"), "10.3.0"),
    **dict.fromkeys(("gfx1011", "gfx1012", "gfx1013"), "10.1.0"),
    **dict.fromkeys(("gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151"), "11.0.0"),
    "gfx90c": "9.0.0",
}
"""The value that people set where a stack has no code for a chip and has it for its nearest kin."""
_PLACE = re.compile(r"\{(\w+)\}")
MASKS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


@dataclass(frozen=True)
class Coverage:
    """The targets that a torch contains, and how sure that is. `targets` None: not known."""

    targets: frozenset[str] | None
    certainty: float
    how: str

    def native(self, gfx: str, generic: str = "") -> bool:
        """True if code for this very chip, or a generic target that covers it, is there."""
        return self.targets is not None and (gfx in self.targets or (bool(generic) and generic in self.targets))


@dataclass(frozen=True)
class Override:
    """A forced target: the value, which chip it names, and everywhere it is set."""

    value: str
    target: str | None
    places: tuple[Setting, ...]


@dataclass(frozen=True)
class Case:
    """A machine with everything that is known about it; built once, asked by each rule."""

    machine: Machine
    images: Images
    trials: Trials | None
    knowledge: Knowledge
    focus: Gpu | None = None
    """The card that the rules are asked about; without it the first dedicated one."""
    seen: Seen | None = None
    """What a log says that a user shows; None: nothing is shown, and the machine alone is judged."""
    kept: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What rules and signs made of the facts alone, for the next log that tells the same."""

    def beside(self, seen: Seen) -> Case:
        """The same case with other lines of the same facts; what was computed of the facts stays."""
        twin = object.__new__(Case)
        vars(twin).update(vars(self), seen=seen)
        return twin

    @once
    def cards(self) -> tuple[Gpu, ...]:
        """AMD cards that this tool is for, dedicated ones first."""
        return tuple(sorted((gpu for gpu in self.machine.gpus if self._in_scope(gpu)), key=lambda gpu: gpu.integrated))

    def _in_scope(self, gpu: Gpu) -> bool:
        row = self.knowledge.gpus.get(gfx_of(gpu) or "")
        return bool(row and row.scope)

    @once
    def card(self) -> Gpu | None:
        """The card that work is meant to run on."""
        return self.focus or (self.cards[0] if self.cards else None)

    @once
    def workers(self) -> tuple[Gpu, ...]:
        """The cards that work is meant to run on: the dedicated ones, or the integrated one where it is alone."""
        return tuple(gpu for gpu in self.cards if not gpu.integrated) or self.cards[:1]

    @once
    def gfx(self) -> str:
        """Its target; empty without one."""
        return (gfx_of(self.card) or "") if self.card else ""

    @property
    def log(self) -> Log | None:
        """The lines that a user shows, if there are any."""
        return self.seen.log if self.seen else None

    @once
    def subject_gfx(self) -> str:
        """The target of the card that is spoken of, in scope or not; dedicated ones first. Empty without one."""
        others = sorted(self.machine.gpus, key=lambda gpu: gpu.integrated)
        return self.gfx or next((gfx for gpu in others if (gfx := gfx_of(gpu))), "")

    @once
    def generic(self) -> str:
        """The generic target that covers it."""
        row = self.knowledge.gpus.get(self.gfx)
        return row.generic if row else ""

    @once
    def environment(self) -> Mapping[str, str]:
        """What a program started now, or at the next login, finds set."""
        values: dict[str, str] = {}
        for setting in self.machine.settings:
            if setting.kind == "environment" and setting.in_force and setting.value is not None and setting.reach in ("login", "session", "process"):
                values[setting.name] = setting.value
        return values

    @once
    def rocm_torches(self) -> tuple[TorchInstall, ...]:
        """The torches that could use an AMD card at all."""
        return tuple(torch for torch in self.machine.torches if isinstance(torch.build, Known) and torch.build.value == "rocm")

    @once
    def _coverages(self) -> dict[int, Coverage]:
        return {}

    def coverage(self, torch: TorchInstall) -> Coverage:
        """What a torch contains, by the best answer there is."""
        if id(torch) not in self._coverages:
            self._coverages[id(torch)] = self._coverage(torch)
        return self._coverages[id(torch)]

    def _coverage(self, torch: TorchInstall) -> Coverage:
        images = [image for image in self.images.files if image.path == torch.site or image.path.startswith(torch.site + "/")]
        # Torch's own code; what its libraries hold is asked below.
        read = [image for image in images if image.store in STORES and image.targets and _own(image, torch)]
        blas = [image for image in images if image.store == "tensile" and "/rocblas/" in image.path and image.targets]
        named = [image for image in images if image.store == "package name"]
        tagged = [image for image in images if image.store == "version tag"]
        if read and not any(image.unread for image in read):
            targets = self._chips(read + named)
            how = "read in " + ", ".join(sorted({image.path.rpartition("/")[2] for image in read}))
            # A chip needs both: torch's own kernels, and those of the matrix library that it calls.
            return Coverage(targets & self._chips(blas), 0.97, f"{how} and rocBLAS") if blas else Coverage(targets, 0.97, how)
        if named:
            return Coverage(self._chips(named), 0.9, "its device packages say so")
        if tagged:
            row = next(row for row in self.knowledge.contents if row.id == tagged[0].inside)
            return Coverage(self._chips(tagged), row.certainty, f"wheels tagged +rocm{_value(torch.toolkit)} are built so")
        return Coverage(None, 0.0, "it names no targets and its libraries could not be read")

    def judged(self, code: str) -> tuple[int, int]:
        """What a scan has found of the torches' code for a target on this card: unsafe functions, and functions; zeros where none was made."""
        found = [image.safety[self.gfx] for image in self.images.files if self.gfx in image.safety and image.safety[self.gfx].code == code]
        return sum(each.unsafe for each in found), sum(each.functions for each in found)

    def _chips(self, images: Iterable[Image]) -> frozenset[str]:
        """Chips that can load the code, whatever its features are; a generic target stays and brings those that it covers."""
        targets = frozenset(target for image in images for target in image.targets)
        return self.knowledge.covered(targets, loadable) | {base(target) for target in targets if ":xnack+" not in target}

    def override(self, reaches: Iterable[str] = ("login", "session", "process")) -> Override | None:
        """The forced target in force for programs of this user, if there is one."""
        wanted = tuple(reaches)
        if wanted not in self._overrides:
            self._overrides[wanted] = self._override(wanted)
        return self._overrides[wanted]

    @once
    def _overrides(self) -> dict[tuple[str, ...], Override | None]:
        return {}

    def _override(self, wanted: tuple[str, ...]) -> Override | None:
        name = self.override_name
        places = tuple(
            setting for setting in self.machine.settings if setting.name == name and setting.in_force and setting.value and setting.reach in wanted
        )
        return override_of(places)

    def taken_out(self, name: str) -> str:
        """Our own drop-in that takes a name out at the next login, in words; empty if there is none."""
        ours = next((setting.path for setting in self.machine.settings if setting.ours and setting.name == name and setting.value is None), "")
        return f"Our drop-in {ours} takes it out at the next login; this session still has it: log out and in again." if ours else ""

    @once
    def override_name(self) -> str:
        """The variable that counts for this card: the form with its node number beats the general one."""
        node = self.card.kfd_node.value if self.card and isinstance(self.card.kfd_node, Known) else None
        own = f"{OVERRIDE}_{node}"
        return own if any(item.name == own and item.in_force and item.value for item in self.machine.settings) else OVERRIDE

    def context(self, torch: TorchInstall | None = None) -> Context:
        """What conditions are held against."""
        platform = self.machine.platform
        system = {"linux"}
        if _value(platform.wsl):
            system.add("wsl")
        if _value(platform.container):
            system.add("container")
        if self.log and self.log.system == "windows":
            system = {"windows"}
        return Context(
            gfx=self.subject_gfx or None,
            rocm=_text(torch.toolkit) if torch else None,
            torch=_text(torch.version) if torch else None,
            kernel=_text(platform.kernel),
            system=frozenset(system),
            environment=self.environment,
        )

    @once
    def bare_context(self) -> Context:
        """The card and the system, without a torch: what evidence is held against."""
        return self.context()

    # -- advice

    def advise(self, *ids: str, **fields: object) -> tuple[Advice, ...]:
        """The remedies of these ids that succeeded in scope, in the given order, with their words filled in."""
        if not ids:
            return ()
        context, known = self.bare_context, self.knowledge.remembered
        words = {**self.fields, **fields} if fields else self.fields
        advice = list[Advice]()
        for id_ in ids:
            used = known.get(("words of", id_)) or self._used(id_)
            key = (id_, context.gfx, context.kernel, context.system, *[words.get(name) for name in used])
            found = known.get(key)
            if found is None:
                found = self.knowledge.remember(key, self._advice(id_, {name: str(value) for name, value in words.items()}))
            advice.extend(found)
        return tuple(advice)

    def _used(self, id_: str) -> tuple[str, ...]:
        """The words that a remedy's text has places for; only they make its text another one. Never empty."""
        row = self.knowledge.remedies[id_]
        used = tuple(dict.fromkeys(("gfx", *_PLACE.findall(" ".join((row.title, row.text, *row.commands))))))
        return self.knowledge.remember(("words of", id_), used)

    def _advice(self, id_: str, words: Mapping[str, str]) -> tuple[Advice, ...]:
        """A remedy in words, and where it is said to work on this card and system; none if it is not recommended there."""
        row = self.knowledge.remedies[id_]
        evidence = in_scope(self.knowledge.evidence_by_remedy.get(id_, ()), id_, self.bare_context)
        sources = tuple(dict.fromkeys(item.source for item in evidence)) if recommended(evidence) else ()
        return (Advice(row.remedy, row.id, _worded(f"{row.title}. {row.text}".strip(), row.commands, words), sources),) if sources else ()

    @once
    def words(self) -> Mapping[str, str]:
        """What is in force here, for the words of remedies that a log calls for."""
        found = self.override()
        torch = self.machine.torches[0] if self.machine.torches else None
        build = _value(torch.build) if torch else None
        kernel = _text(self.machine.platform.kernel)
        sound = SOUND.get(self.subject_gfx, "VALUE")
        row = self.knowledge.gpus.get(self.subject_gfx)
        return {
            "name": self.override_name,
            "value": found.value if found else sound,
            "sound": sound,
            "needed": str(row.atomics_free_firmware) if row else "the newest",
            "places": where(found.places) if found else "the environment of the program (not seen here)",
            "site": torch.site if torch else "use",
            "build": str(build or "CPU or CUDA").upper(),
            "have": kernel or "not told",
            "path": "/dev/kfd",
            "group": "render",
        }

    @once
    def fields(self) -> Mapping[str, str]:
        """Words that any remedy's text may use."""
        wheel = self.wheel
        words = {"gfx": self.subject_gfx or "gfxNNNN", "family": "gfx1030" if self.gfx.startswith("gfx103") else "gfx1010"}
        if wheel:
            words |= {"index": wheel.index, "torch": wheel.torch, "megabytes": str(wheel.download_megabytes)}
            # A shell would take the brackets and the equals signs apart.
            words["packages"] = " ".join(f'"{package.format(gfx=self.gfx)}"' for package in wheel.packages)
        return words

    @once
    def wheel(self):  # type: ignore[no-untyped-def]  # WheelRow | None; mypy does not see through it here
        """The newest line of wheels that has this card's target."""
        return next((row for row in self.knowledge.wheels if self.gfx in row.gfx and not row.remedy), None)


def override_of(places: tuple[Setting, ...]) -> Override | None:
    """Judge what a set of places forces; the last one speaks."""
    if not places:
        return None
    value = places[-1].value or ""
    return Override(value, forced(value), tuple(place for place in places if place.value == value))


def own_version(gfx: str) -> str:
    """The value that names the chip itself: gfx1012 -> '10.1.2', gfx90a -> '9.0.10'."""
    digits = gfx.removeprefix("gfx")
    return f"{digits[:-2]}.{int(digits[-2], 16)}.{int(digits[-1], 16)}"


def finding(cause: str, severity: Severity, certainty: float, why: Iterable[str], remedies: tuple[Advice, ...] = ()) -> Finding:
    """A finding; certainty is rounded so that documents compare."""
    return Finding(cause, severity, round(certainty, 2), tuple(why), remedies)


def where(places: Iterable[Setting]) -> str:
    """Where a value is set, in words: files with lines first, the running process only if no file says it."""
    listed = list(places)
    files = [f"{place.path} line {place.line}" for place in listed if place.origin != "process"]
    return ", ".join(dict.fromkeys(files)) or "the environment of this process"


def gfx_of(gpu: Gpu | None) -> str | None:
    """The silicon's target, or None where it is not known."""
    return gpu.gfx.value if gpu and isinstance(gpu.gfx, Known) else None


def older(version: str | None, than: str) -> bool:
    """True if a version is known and older."""
    return parse_version(version) is not None and in_range(f"<{than}", version)


def _own(image: Image, torch: TorchInstall) -> bool:
    return image.path.removeprefix(torch.site).startswith(("/torch/lib/libtorch_hip.so", "/torch/.kpack/"))


def _value(fact: object) -> object:
    return fact.value if isinstance(fact, Known) else None


def _text(fact: Known[str] | Known[str | None] | Unknown) -> str | None:
    return fact.value if isinstance(fact, Known) else None


def _pasteable(command: str, words: Mapping[str, str]) -> bool:
    """False where a word that goes into a command came from a hostile or odd file: it is told, not offered to a shell."""
    used = {name for name in _PLACE.findall(command) if name != "packages"}
    return all(re.fullmatch(r"[A-Za-z0-9_./:,+=@%-]*", words.get(name, "")) for name in used)


def _worded(text: str, commands: Iterable[str], words: Mapping[str, str]) -> str:
    return _fill("\n".join((text, *(f"$ {command}" for command in commands if _pasteable(command, words)))), words)


def _fill(text: str, words: Mapping[str, str]) -> str:
    # Not str.format: a command may hold braces of its own.
    return _PLACE.sub(lambda match: words.get(match.group(1), match.group()), text)
