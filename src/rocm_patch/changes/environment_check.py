"""Whether an environment file of ours does what it is for: told by those who read it, the shell and systemd's own programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from rocm_patch.changes import environment_places
from rocm_patch.changes.environment_places import Place, path_of
from rocm_patch.changes.environment_text import Setting, Settings, guard, parse, program_of, text_of
from rocm_patch.changes.environment_text import in_force as value_of
from rocm_patch.changes.kind import NOTE, Change, Held, Look
from rocm_patch.changes.places import Ground
from rocm_patch.errors import FormatError, RocmPatchError
from rocm_patch.model import Known, Step
from rocm_patch.root import Root, Tree
from rocm_patch.run import CLEAN, run

SHELL: Final = "/bin/sh"
GENERATORS: Final = (
    "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator",
    "/lib/systemd/user-environment-generators/30-systemd-environment-d-generator",
)
ANALYZE: Final = "/usr/bin/systemd-analyze"
_TIMEOUT: Final = 10.0


def check(place: Place, change: Change, ground: Ground, tree: Tree) -> list[str]:
    """What was seen to hold of one file.

    Raises:
        RocmPatchError: it does not read back, or whoever reads it does not get from it what it says.
    """
    data = tree.state(ground.at(change.path)).data
    if data != change.after.data:
        raise RocmPatchError(f"{change.path} does not read back as it was written")
    form = place.row.format
    settings = parse(data, form)
    if form in ("shell", "command"):
        body = text_of(settings, "shell").encode()
        said = [f"{change.path}: {line}" for line in source(body, settings)]
        if form == "command":
            said.append(f"{change.path}: starts {program_of(data)}")
    elif form == "conf":
        said = _generated(change.path, settings, ground)
    elif form == "unit":
        said = [f"{change.path}: {name}: {in_words(name, item)}" for name, item in sorted(settings.items())] + _analyzed(change.path, place, ground)
    else:
        said = [f"{change.path}: {name}={value_of(item)}" for name, item in sorted(settings.items())]
    reach, beyond, next_step = place.told()
    return [*said, f"{NOTE}in force in {reach}", f"{NOTE}not in force in {beyond}", f"{NOTE}counts after this: {next_step}"]


# ------------------------------------------------------------------ shells


def source(data: bytes, settings: Settings) -> list[str]:
    """Source exactly these bytes; a path could be swapped between our look and the shell's."""
    syntax = run([SHELL, "-n"], stdin=data, timeout=_TIMEOUT)
    if syntax.code != 0:
        raise RocmPatchError(f"{SHELL} -n does not accept the drop-in: {syntax.text}")
    everywhere, cards = data.decode(), {item.cards for item in settings.values() if item.cards}
    for one in sorted(cards):  # what stands behind a card is tried as if the card were there
        everywhere = everywhere.replace(guard(one), "if true; then\n")
    _source(everywhere.encode(), settings)
    said = [f"sourced by {SHELL}: {in_words(name, item)}" for name, item in sorted(settings.items())]
    for one in sorted(cards):
        ended = run([SHELL, "-euc", ". /dev/stdin"], stdin=(guard(one) + "exit 0\nfi\nexit 1\n").encode(), timeout=_TIMEOUT)
        there = card_is_here(one)
        if ended.code != (0 if there else 1) or ended.err:
            raise RocmPatchError(f"the drop-in does not find the card as it should when {SHELL} sources it: {ended.text}")
        said.append(f"sourced by {SHELL}: one of these cards is {'in this machine' if there else 'not in this machine: here it sets nothing'}")
    return said


def card_is_here(cards: Sequence[str]) -> bool:
    """Whether amdgpu drives one of these cards on the running machine: the question that the drop-in asks, asked another way."""
    root = Root("/")
    for name in root.list("sys/bus/pci/drivers/amdgpu"):
        vendor, device = (root.word(f"sys/bus/pci/drivers/amdgpu/{name}/{key}") for key in ("vendor", "device"))
        if isinstance(vendor, Known) and isinstance(device, Known) and vendor.value == "0x1002" and device.value in {f"0x{card}" for card in cards}:
            return True
    return False


def _source(data: bytes, settings: Settings) -> None:
    names = sorted(settings)
    show = "".join(f"""printf '%s\\n' "{name}=${{{name}-}}" "${{{name}+set}}"\n""" for name in names)
    rounds = max((len(item.harmful) for item in settings.values()), default=0)
    for turn in range(rounds + 1):
        # Every harmful value has its turn; in the last one each name has a value that nobody judged.
        given = {name: item.harmful[turn] if turn < len(item.harmful) else "set on purpose" for name, item in settings.items()}
        ended = run([SHELL, "-euc", f". /dev/stdin\n{show}"], stdin=data, environment={**CLEAN, **given}, timeout=_TIMEOUT)
        wanted = [line for name in names for line in _expected(name, settings[name], given[name])]
        if ended.code != 0 or ended.err or ended.out.decode("utf-8", "replace").splitlines() != wanted:
            raise RocmPatchError(f"the drop-in does not do what it is for when {SHELL} sources it: {ended.text}")


def in_words(name: str, item: Setting) -> str:
    """What becomes of a name."""
    if item.value is not None:
        return f"{name}={item.value}"
    return f"{name} is unset where it was {' or '.join(map(repr, item.harmful))}"


def _expected(name: str, item: Setting, given: str) -> list[str]:
    if item.value is not None:
        return [f"{name}={item.value}", "set"]
    return [f"{name}=", ""] if given in item.harmful else [f"{name}={given}", "set"]


# ------------------------------------------------------------------ systemd


def _generated(path: str, settings: Settings, ground: Ground) -> list[str]:
    """What systemd's own reader of environment.d makes of all files together: a later one may win over ours."""
    lines = [f"{path}: {name}={value_of(item)}" for name, item in sorted(settings.items())]
    generator = next((item for item in GENERATORS if os.access(item, os.X_OK)), "")
    if not ground.live or not generator:
        return [*lines, f"{NOTE}read back; systemd's own reader was not asked" + ("" if ground.live else ": this is not the running system")]
    home = {"HOME": ground.base, "XDG_CONFIG_HOME": ground.config} if ground.scope == "user" else {"HOME": "/nonexistent"}
    ended = run([generator], environment={**CLEAN, **home}, timeout=_TIMEOUT)
    found = dict(line.split("=", 1) for line in ended.out.decode("utf-8", "replace").splitlines() if "=" in line)
    if ended.code != 0:
        raise RocmPatchError(f"systemd's reader of environment.d does not accept it: {ended.text}")
    for name, item in sorted(settings.items()):
        value = found.get(name, "").strip('"')
        other = "" if value == value_of(item) else f", but a later file of environment.d makes it {value!r}"
        lines.append(f"systemd's own reader: {name}={value_of(item)}{other}")
    return lines


def _analyzed(path: str, place: Place, ground: Ground) -> list[str]:
    if not ground.live or not os.access(ANALYZE, os.X_OK):
        return [f"{NOTE}read back; systemd-analyze was not asked" + ("" if ground.live else ": this is not the running system")]
    user = ["--user"] if ground.scope == "user" else []
    home = {"HOME": ground.base, "XDG_CONFIG_HOME": ground.config} if user else {}
    ended = run([ANALYZE, *user, "verify", "--man=no", place.name], environment={**CLEAN, **home}, timeout=_TIMEOUT * 3)
    # It also judges the unit itself and all that it needs: only words about our file are ours.
    about = [line for line in (ended.out + ended.err).decode("utf-8", "replace").splitlines() if line.startswith(path)]
    if about:
        raise RocmPatchError(f"systemd-analyze does not accept our drop-in: {about[0]}")
    return [f"systemd-analyze verify {place.name}: no word against {path}"]


# ------------------------------------------------------------------ what is in force


def in_force(steps: Sequence[Step], look: Look) -> tuple[Held, ...]:
    """Each value of ours against the environment of this very process, where that is what the place is for."""
    texts = {next(iter(step.parameters.get("place", ())), "") for step in steps} or {""}
    found = list[Held]()
    for text in sorted(texts):
        place = environment_places.find(text, look.ground.scope)
        path = path_of(place, look.ground)
        now = look.now(path)
        if now.kind != "file":
            continue
        try:
            settings = parse(now.data, place.row.format)
        except FormatError:
            continue
        found += [_held(name, item, place, path, look.ground) for name, item in sorted(settings.items())]
    return tuple(found)


def _held(name: str, item: Setting, place: Place, path: str, ground: Ground) -> Held:
    wanted = value_of(item)
    reach, _, next_step = place.told()
    if not ground.live or place.row.format not in ("shell", "conf"):
        why = f"for {reach}" if ground.live else "this is not the running system"
        return Held(name, wanted, None, path, None, why)
    value = os.environ.get(name)
    holds = value == wanted if wanted is not None else value not in item.harmful
    if item.cards and not card_is_here(item.cards):
        return Held(name, wanted, value, "this process", None, "the card that it is for is not in this machine")
    return Held(name, wanted, value, "this process", holds, "" if holds else f"not in this process; {next_step}")
