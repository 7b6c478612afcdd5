"""Words and JSON about source patches: which there are, what one would do to a tree, what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from rocm_patch import codec
from rocm_patch.model import SCHEMA
from rocm_patch.sources import Outlook, Patch

_WORDS: Mapping[str, str] = {
    "ready": "not applied; fits",
    "applied": "applied",
    "partly applied": "partly applied: apply or revert ends it",
    "upstream": "not needed: the tree has it",
    "foreign": "there, of other make",
    "refused": "does not fit",
}


def listing(patches: Iterable[Patch], outlooks: Mapping[str, Outlook]) -> dict[str, Any]:
    """The one JSON document of `patches list`; with a tree each row has its state in it."""
    rows = []
    for patch in patches:
        row = {"id": patch.id, "component": patch.component, "versions": patch.versions, "status": patch.status, "sites": patch.sites}
        rows.append({**row, "state": outlooks[patch.id].state} if patch.id in outlooks else row)
    return {"schema": SCHEMA, "patches": rows}


def header(patch: Patch) -> dict[str, Any]:
    """A patch without its queries."""
    row = {key: value for key, value in codec.encode(patch).items() if key not in ("form", "foreign")}
    return {**row, "status": patch.status, "sites": patch.sites, "forms": [form.name for form in patch.form]}


def document(patch: Patch, outlook: Outlook, outcome: str, diff: bytes = b"") -> dict[str, Any]:
    """The one JSON document about a patch and a tree."""
    sites = [{"file": _plain(site.file), "line": site.line, "what": site.what} for site in outlook.sites]
    document = {
        "schema": SCHEMA,
        "patch": patch.id,
        "status": patch.status,
        "outcome": outcome,
        "state": outlook.state,
        "form": outlook.form,
        "sites": sites,
        "files": [_plain(change.file) for change in outlook.changes],
        "reasons": [_plain(reason) for reason in outlook.reasons],
    }
    return {**document, "diff": diff.decode("utf-8", "replace")} if diff else document


def say_listing(patches: Iterable[Patch], outlooks: Mapping[str, Outlook], console: Console) -> None:
    """One line for each patch."""
    for patch in patches:
        state = f"  [{_WORDS[outlooks[patch.id].state]}]" if patch.id in outlooks else ""
        console.print(Text(f"{patch.id:<28} {patch.status:<9} {patch.versions:<11} {patch.title}{state}"), soft_wrap=True)


def say_patch(patch: Patch, console: Console) -> None:
    """All that is known of a patch."""
    places = f"{patch.sites} place{'s' * (patch.sites > 1)}"
    console.print(Text(f"{patch.id}: {patch.title}", "bold"))
    console.print(Text(f"{patch.component} {patch.versions}, for {', '.join(patch.gpus)}; {places} in most sources; status: {patch.status}"))
    console.print(Text(patch.what))
    console.print(Text(patch.why))
    console.print(Text(f"Upstream ({patch.upstream.date}): {patch.upstream.state}. {patch.upstream.source}"), soft_wrap=True)
    for row in patch.evidence:
        console.print(Text(f"- {row.outcome} ({row.kind}, {row.date}): {row.note} {row.source}"), soft_wrap=True)


def say_outlook(patch: Patch, outlook: Outlook, outcome: str, console: Console) -> None:
    """What was found and done."""
    console.print(Text(f"{patch.id}: {outcome}", "bold"))
    for site in outlook.sites:
        console.print(Text(f"  {_plain(site.file)}:{site.line}  {site.what}"), soft_wrap=True)
    for reason in outlook.reasons:
        console.print(Text(f"  {_plain(reason)}"), soft_wrap=True)


def _plain(text: str) -> str:
    # A file name need not be UTF-8; what is printed must be.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
