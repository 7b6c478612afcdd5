"""Words and JSON about sanitized copies: what would be edited, why not, what is proven and what is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from rocm_patch import codec
from rocm_patch.model import SCHEMA
from rocm_patch.report.names import demangled, folded
from rocm_patch.sanitize import Made, Outlook, reasons
from rocm_patch.sanitize.record import Record

_SHOWN = 10


def document(path: str, chip: str, code: str, view: Outlook, made: Made | None, native: tuple[str, ...], *, spared: bool = False) -> dict[str, Any]:
    """The one JSON document. `outcome`: refused, nothing to do, would edit, written. `spared`: the chip loads what is native, and nothing else."""
    found = view.found
    outcome = "nothing to do" if spared or not (view.reasons or view.edits) else "refused" if view.reasons else "written" if made else "would edit"
    return {
        "schema": SCHEMA,
        "source": path,
        "chip": chip,
        "code": code,
        "outcome": outcome,
        "native": list(native),
        "reasons": [] if spared else list(view.reasons),
        "targets": list(found.targets),
        "code_objects": found.judged,
        "instructions": found.instructions,
        "edits": [] if spared else codec.encode(view.edits),
        "remaining": {rule: {**codec.encode(count), "kernels": list(found.kernels[rule])} for rule, count in sorted(found.remaining.items())},
        "unread": list(found.unread),
        "copy": made.copy if made else None,
        "record": made.record_path if made else None,
        "proven": list(PROVEN) if made else [],
        "unproven": list(UNPROVEN) if made else [],
    }


PROVEN = (
    "every byte that differs from the original is in the record, and nothing else differs",
    "the copy, judged again, holds nothing that a rule of ours calls unsafe on this chip",
    "the record leads back to the original, byte for byte",
)
UNPROVEN = (
    "that its kernels then run right on the silicon: nobody has run a sanitized copy on an RDNA1 card",
    "that our rules know every way in which code for another chip can fail on this one",
)


def refusal(path: str, chip: str, code: str, view: Outlook, native: tuple[str, ...]) -> tuple[str, str]:
    """What is said of a file that is not edited, and what to do."""
    why = reasons(view.found, _readable(name for names in view.found.kernels.values() for name in names))
    what = f"{path} is not sanitized, and nothing was written. On {chip}:\n" + "\n".join(f"  {reason}" for reason in why)
    if native and not view.found.unread and code != chip:
        return what, f"It has native {', '.join(native)} code: take the override to {code} away (HSA_OVERRIDE_GFX_VERSION), and the card loads that"
    why_not = "replacing hints would leave the rest as unsafe as it was" if view.found.remaining else "what was not read may be as unsafe as ever"
    return what, f"Most libraries end here: {why_not}. A build with native code for the card is the remedy: rocm-patch fix finds the wheel"


def spared(path: str, native: tuple[str, ...], out: Console) -> None:
    """The card has code of its own in there."""
    text = (
        f"Nothing to do: {path} has native {', '.join(native)} code, which the card loads where no override is set. If HSA_OVERRIDE_GFX_VERSION "
        "is set for it somewhere, unset that (rocm-patch doctor finds it); --code TARGET asks about other code all the same."
    )
    out.print(text, soft_wrap=True)


def nothing(path: str, chip: str, code: str, view: Outlook, out: Console) -> None:
    """There is no hint to replace, and why."""
    found = view.found
    if found.judged:
        text = f"Nothing to do: {_objects(view)} for {code} in {path}: nothing in there is unsafe on {chip}."
    else:
        text = f"Nothing to do: {path} has no code for {code}; it has code for {', '.join(found.targets) or 'no GPU'}."
    out.print(text, soft_wrap=True)


def edits(view: Outlook, out: Console) -> None:
    """What is replaced, the first of it line by line."""
    told = [(edit, step) for edit in view.edits for step in edit.instructions]
    out.print(f"{len(told)} of {view.found.instructions} instructions in {_objects(view)} are replaced by s_nop 0:", soft_wrap=True)
    readable = _readable(step.kernel for _, step in told[:_SHOWN])
    for edit, step in told[:_SHOWN]:
        where = f" {edit.inside}" if edit.inside else ""
        out.print(f"  {step.before} -> {step.after} at {step.address:#x} in {readable(step.kernel)}{where}", soft_wrap=True)
    if len(told) > _SHOWN:
        out.print(f"  and {len(told) - _SHOWN} more; the record has them all")
    packed = sum(1 for edit in view.edits if edit.before != edit.instructions[0].before)
    if packed:
        out.print(f"{packed} compressed bundles are compressed again, each into the bytes that it had")


def written(made: Made, out: Console) -> None:
    """What was written, how one would use it, and what is known of it."""
    name, folder = made.record.name, os.path.dirname(made.copy)
    out.print(Text("written: ", style="bold") + Text(made.copy), soft_wrap=True)
    out.print(Text("record:  ", style="bold") + Text(made.record_path), soft_wrap=True)
    out.print("Nothing loads it. To try it with one command, and only with that:", soft_wrap=True)
    if ".so" in name:
        out.print(f"  LD_LIBRARY_PATH={folder} COMMAND    where the library is found by its name", soft_wrap=True)
        out.print(f"  LD_PRELOAD={made.copy} COMMAND    where the program or wheel says where it lies (RPATH)", soft_wrap=True)
    else:
        out.print(f"  give {made.copy} to whatever loads {name}: it is no library", soft_wrap=True)
    _known(out)
    out.print(f"The original again: rocm-patch sanitize --undo {made.record_path} -o FILE", soft_wrap=True)


def restored(record: Record, output: str, out: Console) -> None:
    """What `--undo` wrote."""
    out.print(f"written: {output}, {record.before.size} bytes, SHA-256 {record.before.sha256}, as {record.source} was", soft_wrap=True)


def _known(out: Console) -> None:
    for title, lines in (("proven", PROVEN), ("not proven", UNPROVEN)):
        for line in lines:
            out.print(f"{title}: {line}", soft_wrap=True)


def _objects(view: Outlook) -> str:
    return f"{view.found.judged} code object{'' if view.found.judged == 1 else 's'}"


def _readable(symbols: Iterable[str]) -> Callable[[str], str]:
    known = demangled(list(symbols))
    return lambda symbol: folded(known[symbol]).replace("\n", "?")
