"""Rules about torch, the code in it, and the override: the two ends of the one real problem on these cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rocm_patch.diagnose.case import OVERRIDE, Case, Coverage, Override, finding, gfx_of, older, override_of, own_version, where
from rocm_patch.model import Finding, Known, Setting, TorchInstall

DROP_IN = ("environment-file", "pam-env", "environment.d", "profile")
BY_HAND = ("shell", "launcher", "desktop", "systemd", "conda")
"""Files read after our drop-in, or by one program only; they are the user's, and only named (rule: foreign files win)."""


def wheels(case: Case) -> Iterator[Finding]:
    """A CPU or CUDA build where the card needs a ROCm one."""
    if not case.card:
        return
    if not case.machine.torches and case.log:
        return
    if not case.machine.torches:
        yield finding(
            "wrong_torch_wheel",
            "info",
            0.9,
            ["No torch was found; name an interpreter with --python to look elsewhere."],
            case.advise("native-wheel"),
        )
        return
    usable = any(case.coverage(torch).targets is None or case.coverage(torch).native(case.gfx, case.generic) for torch in case.rocm_torches)
    for torch in case.machine.torches:
        build = torch.build.value if isinstance(torch.build, Known) else "unknown"
        if build in ("rocm", "unknown"):
            continue
        if build == "cuda" and any(name.startswith("NVIDIA") for name in case.machine.other_gpus):
            continue
        why = [f"{label(torch)} is a {'CPU-only' if build == 'cpu' else 'CUDA'} build; it cannot use the {case.card.name}."]
        if usable or case.rocm_torches:
            yield finding("wrong_torch_wheel", "info", 0.6, [*why, "Another torch on this machine is a ROCm build."])
        else:
            certainty = 0.95 if isinstance(torch.build, Known) and "version.py" in torch.build.source else 0.85
            yield finding("wrong_torch_wheel", "problem", certainty, why, case.advise("rocm-wheel", site=torch.site, build=build.upper()))


def code(case: Case) -> Iterator[Finding]:
    """No code for the target that the runtime will present."""
    if not case.card:
        return
    override = case.override()
    target = override.target if override and override.target else case.gfx
    for torch in case.rocm_torches:
        coverage = case.coverage(torch)
        if coverage.targets is None or coverage.native(case.gfx, case.generic):
            continue
        if override and target in coverage.targets and (same_instructions(case.gfx, target) or _legacy(torch, case.gfx, target)):
            continue
        has = "none at all" if not coverage.targets else "only " + ", ".join(sorted(coverage.targets))
        why = [f"{label(torch)} has no code for {case.gfx}: {has} ({coverage.how})."]
        if torch.placeholders:
            why.append(f"The packages {', '.join(torch.placeholders)} are the public index's empty placeholders, version 0.0.1.dev0.")
        if override and override.target != case.gfx and target in coverage.targets:
            why.append(f"The override hides this for now: without it the first kernel ends in 'invalid device function', with it {target} code runs.")
        ids = ["native-wheel"]
        value = legitimate_value(case.gfx, coverage)
        if value and not override:
            ids.append("set-override")
        # Below an unsafe override this is the second half of the story, not the first.
        certainty = coverage.certainty - (0.05 if override else 0.0)
        yield finding("missing_code_object", "problem", certainty, why, case.advise(*ids, value=value))


def override(case: Case) -> Iterator[Finding]:
    """An override in force for the user, and those that only one program or service gets."""
    if not case.card:
        return
    general = case.override()
    if general:
        pending = all(place.origin == "process" for place in general.places) and case.taken_out(case.override_name)
        for item in _judge(case, general, ""):
            kept = tuple(advice for advice in item.remedies if not advice.id.startswith("drop-"))
            yield replace(item, why=(*item.why, pending), remedies=kept) if pending else item
    others: dict[str, list[object]] = {}
    for setting in case.machine.settings:
        if setting.name == OVERRIDE and setting.value and setting.reach.startswith(("application", "service")):
            others.setdefault(setting.reach, []).append(setting)
    for reach, places in others.items():
        found = override_of(tuple(places))  # type: ignore[arg-type]
        if found and not (general and general.value == found.value):
            yield from _judge(case, found, reach)
        elif found:
            yield finding("override_wrong", "info", 0.6, [f"{reach} sets the same override itself: {where(found.places)}."])


def _judge(case: Case, found: Override, reach: str) -> Iterator[Finding]:
    gfx, target, place = case.gfx, found.target, where(found.places)
    said = f"{found.places[0].name}={found.value} is in force{' for ' + reach if reach else ''} ({place})"
    advice = case.advise(*droppers("drop-override", found.places), name=found.places[0].name, value=found.value, places=place)
    if target is None:
        yield finding("override_wrong", "problem", 0.95, [f"{said}: this is no version M.m.s, and the runtime refuses to start."], advice)
        return
    if target == gfx:
        yield finding("override_wrong", "info", 0.8, [f"{said}: it names the card's own target and changes nothing."])
        return
    torches = case.rocm_torches
    coverages = [(torch, case.coverage(torch)) for torch in torches]
    native = [torch for torch, coverage in coverages if coverage.native(gfx, case.generic)]
    if not same_instructions(gfx, target):
        old = [torch for torch in torches if _legacy(torch, gfx, target)]
        if old and len(old) == len(torches):
            why = [
                f"{said}: it runs gfx1030 code on a {gfx} chip.",
                f"{label(old[0])} is the generation with which this ran for several people, in fp32 only; "
                "it is unsound all the same: fp16 gives black images or NaN.",
            ]
            yield finding("override_unsafe", "warning", 0.85, why, case.advise("native-wheel"))
            return
        if native and len(native) == len(torches):
            why = [
                f"{said}, left over beside a native wheel: {label(native[0])} has code for {gfx}.",
                f"With the override the runtime asks for {target} code, which that wheel lacks or which does not fit a {gfx} chip.",
            ]
            yield finding("override_wrong", "problem", 0.93, why, advice)
            return
        why = [
            f"{said}: it forces {target} code on a {gfx} chip, which lacks instructions of it and has silicon bugs that {target} code does not avoid."
        ]
        why.append("What that looks like: 100 % GPU without end, error 0x29 (aperture violation), resets, NaN or black images.")
        unsafe, functions = case.judged(target)
        if functions:
            why.append(f"`rocm-patch scan` has read it: {unsafe:,} of {functions:,} functions for {target} are unsafe on a {gfx}.")
        yield finding("override_unsafe", "problem", 0.95, why, case.advise("native-wheel") + advice)
        return
    lacking = [torch for torch, coverage in coverages if torch in native and coverage.targets is not None and target not in coverage.targets]
    if lacking and len(native) < len(torches):
        other = next(torch for torch in torches if torch not in native)
        why = [
            f"{said}: {label(other)} needs it, and {label(lacking[0])} breaks with it: it has code for {gfx} and none for {target}.",
            "Set it for the one program only: `rocm-patch run -- COMMAND` chooses by the torch of the command.",
        ]
        yield finding("override_wrong", "problem", 0.88, why)
        return
    if native and len(native) == len(torches):
        if lacking:
            why = [
                f"{said}, left over beside a native wheel: {label(lacking[0])} has code for {gfx} and none for {target}, "
                "which the runtime now asks for."
            ]
            yield finding("override_wrong", "problem", 0.9, why, advice)
        else:
            why = [f"{said}: needless, {label(native[0])} has code for {gfx} itself."]
            yield finding("override_wrong", "info", 0.7, why)
        return
    if all(coverage.targets is None for _, coverage in coverages):
        yield finding(
            "override_wrong", "info", 0.5, [f"{said}: {gfx} executes {target} code, so it is sound; whether it is needed could not be read."]
        )


def same_instructions(gfx: str, target: str) -> bool:
    """True if a chip executes all code for a target: the sound overrides of this family.

    gfx1031-1036 share gfx1030's feature set; gfx1011/1012/1013 execute gfx1010 code. Nothing else does.
    """
    if gfx == target:
        return True
    if target == "gfx1030":
        return gfx in {"gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"}
    return target == "gfx1010" and gfx in {"gfx1011", "gfx1012", "gfx1013"}


def legitimate_value(gfx: str, coverage: Coverage) -> str:
    """The override that is sound for this chip with this code; empty if there is none."""
    for target in ("gfx1030", "gfx1010"):
        if gfx != target and same_instructions(gfx, target) and coverage.targets is not None and target in coverage.targets:
            return own_version(target)
    return ""


def droppers(id_: str, places: tuple[Setting, ...]) -> tuple[str, ...]:
    """Which remedy takes a value out: our drop-in, the user's own editor for files that come after it, or both."""
    by_hand = any(place.origin in BY_HAND for place in places)
    drop_in = any(place.origin in DROP_IN for place in places)
    return (*([id_] if drop_in or not by_hand else []), *([f"{id_}-by-hand"] if by_hand else []))


def _legacy(torch: TorchInstall, gfx: str, target: str) -> bool:
    """The one unsound override that ran for several people: gfx1030 code of ROCm 5.2 or older on gfx101x."""
    return target == "gfx1030" and gfx.startswith("gfx101") and isinstance(torch.toolkit, Known) and older(torch.toolkit.value, "5.3")


def native_rdna1(case: Case) -> Iterator[Finding]:
    """What every owner of a native gfx101x stack has to know."""
    if not case.gfx.startswith("gfx101"):
        return
    for torch in case.rocm_torches:
        if case.coverage(torch).native(case.gfx, case.generic):
            why = [
                f"{label(torch)} has native code for {case.gfx}: usable, with this: "
                "CNN training needs MIOpen off, channels_last or patched batch norm.",
                "MIOpen's batch-norm training kernels do not assemble on gfx101x (their guard names gfx103x only), "
                "and its hand-written Winograd kernels carry patterns that this chip handles wrongly.",
            ]
            yield finding("miopen_compile_or_find", "warning", 0.85, why, case.advise("miopen-off", "miopen-find-fast"))
            return


def known_regressions(case: Case) -> Iterator[Finding]:
    """Builds with a known defect."""
    if not case.card:
        return
    for torch in case.rocm_torches:
        version = torch.toolkit.value if isinstance(torch.toolkit, Known) else None
        if version and version.startswith("10.0"):
            why = [
                f"{label(torch)} brings MIOpen 3.6.0, which was seen to fail every convolution "
                "with 'Invalid elapsed time' (on gfx1151; not known here)."
            ]
            yield finding("runtime_regression", "warning", 0.4, why, case.advise("miopen-off"))
        numpy = next((package.version for package in torch.packages if package.name == "numpy"), None)
        if numpy and not older(numpy, "2") and isinstance(torch.version, Known) and older(torch.version.value, "2.3"):
            yield finding("numpy_abi", "problem", 0.9, [f"{label(torch)} was built for NumPy 1 and finds NumPy {numpy} beside it."])
    if case.gfx == "gfx1033" and case.rocm_torches:
        why = ["On gfx1033 training was reported to diverge to NaN with three different builds, while inference agrees with the CPU."]
        yield finding("numerical", "warning", 0.5, why)


def integrated(case: Case) -> Iterator[Finding]:
    """An integrated GPU beside the card, visible to a torch that has no code for it."""
    own = [gpu for gpu in case.machine.gpus if gpu.integrated and isinstance(gpu.kfd_node, Known) and gpu.kfd_node.value is not None]
    main = case.card
    if not own or main is None or main.integrated or not isinstance(main.kfd_node, Known) or main.kfd_node.value is None:
        return
    if any(name in case.environment for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")):
        return
    second = gfx_of(own[0]) or "unknown"
    blind = [torch for torch in case.rocm_torches if not case.coverage(torch).native(second, "")]
    if not blind:
        return
    nodes = sorted(
        gpu.kfd_node.value for gpu in case.machine.gpus if isinstance(gpu.kfd_node, Known) and gpu.kfd_node.value is not None and gpu.driver
    )
    index = nodes.index(main.kfd_node.value)
    why = [
        f"Beside the {main.name} the runtime sees the integrated {own[0].name} ({second}), for which {label(blind[0])} has no code.",
        "Programs that pick the wrong one, or load code for all, end in 'shared object initialization failed' or 'invalid device function'.",
    ]
    yield finding("igpu_selected", "warning", 0.6, why, case.advise("mask-igpu", value=index, device=main.name))


def label(torch: TorchInstall) -> str:
    """A torch in words: where it is and what it calls itself."""
    version = torch.version.value if isinstance(torch.version, Known) else "of unknown version"
    return f"torch {version} ({torch.label})"
