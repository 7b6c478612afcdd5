"""undo.sh: take one transaction back with a POSIX shell and nothing of ours, from a rescue system if need be."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rocm_patch.changes import grown
from rocm_patch.changes.group_file import GROUP, GSHADOW, members
from rocm_patch.changes.journal import MADE, PLAN, RECEIPT, UNDO
from rocm_patch.changes.places import Ground
from rocm_patch.changes.record import Entry, Record, Shape
from rocm_patch.root import parent_of

_HEAD = """\
#!/bin/sh
# Takes back what rocm-patch did in transaction {transaction}, without rocm-patch.
# What somebody else changed since is named and left (exit 5). Extended attributes are not restored by this script.
# For a system that is mounted elsewhere, name its root: sh undo.sh /mnt
set -u
umask 077
# A rescue system may have no /dev/null, and a command whose output goes there would not be run: 2>&- needs nothing.
root=${{1-{anchor}}}
root=${{root%/}}
copies=$root/{copies}
left=0

say() {{ printf '%s\\n' "$1" >&2; }}
leave() {{ say "left: $1 (changed by somebody else)"; left=1; }}
stale() {{ say "left: $1 (generated again since; $2)"; left=1; }}
sum() {{ set -- $(sha256sum <"$1"); printf '%s' "$1"; }}
mend() {{
  # path, line: somebody changed the rest of this file since, so our line goes alone (a last line without an end gets one)
  temporary=${{1%/*}}/.rocm-patch-$(printf '%08x%08x' "$$" 0)
  rm -f "$temporary" && cp -p "$1" "$temporary" && {{ LC_ALL=C grep -vxF -e "$2" "$1" >"$temporary" || :; }} \\
    && sync && mv -f "$temporary" "$1" && sync \\
    || {{ say "cannot write $1"; left=1; }}
}}
has() {{ [ ! -L "$1" ] && [ -f "$1" ] && LC_ALL=C grep -qxF -e "$2" "$1"; }}
marks() {{
  # type and mode, owner, group, as ls writes them; a dot or plus at the end speaks of labels
  set -- $(LC_ALL=C ls -ldn "$1")
  printf '%s' "${{1%[.+@]}} $3 $4"
}}
is_file() {{ [ ! -L "$1" ] && [ -f "$1" ] && [ "$(marks "$1")" = "$2" ] && [ "$(sum "$1")" = "$3" ]; }}
is_link() {{ [ -L "$1" ] && [ "$(readlink "$1")" = "$2" ]; }}
is_absent() {{ [ ! -L "$1" ] && [ ! -e "$1" ]; }}
put_file() {{
  # path, copy, mode, owner:group
  if [ "$(sum "$2")" != "${{2##*/}}" ]; then say "the copy $2 is damaged"; left=1; return; fi
  temporary=${{1%/*}}/.rocm-patch-$(printf '%08x%08x' "$$" 0)
  rm -f "$temporary" && cp "$2" "$temporary" && chown "$4" "$temporary" && chmod "$3" "$temporary" && sync && mv -f "$temporary" "$1" && sync \\
    || {{ say "cannot write $1"; left=1; }}
}}
put_link() {{
  temporary=${{1%/*}}/.rocm-patch-$(printf '%08x%08x' "$$" 0)
  rm -f "$temporary" && ln -s "$2" "$temporary" && chown -h "$3" "$temporary" && mv -f "$temporary" "$1" && sync \\
    || {{ say "cannot write $1"; left=1; }}
}}
sweep() {{
  # what a killed run left half made; nobody else uses these names
  for t in "$1"/.rocm-patch-????????????????; do
    if [ -L "$t" ] || [ -f "$t" ]; then rm -f "$t"; fi
    if [ ! -L "$t" ] && [ -d "$t" ]; then rm -f "$t/{marker}"; rmdir "$t"; fi
  done
}}

undo() {{
"""

_TAIL = """\
  if [ "$left" -ne 0 ]; then exit 5; fi
  # All is as it was: this transaction's own folder goes as well, and the journal with it if nothing else is in it.
  cd /
  rm -f {files}
  rmdir "$copies" 2>&-
{rest}  sync
  exit 0
}}
undo
"""


def script(record: Record, ground: Ground, made: list[str], contents: Mapping[str, bytes], finished: bool) -> bytes:
    """Write the script for an apply. `contents` are its copies by digest, manifests of grown folders among them."""
    folder = f"{ground.state}/{record.transaction}"
    lines = [_HEAD.format(marker=grown.MARKER, transaction=record.transaction, anchor=shlex.quote(ground.anchor), copies=_quote(folder))]
    for folder in sorted({parent_of(ground.at(entry.path)) for entry in record.entries}):
        lines += [f'  sweep "$root"/{_quote(folder)}']
    leave = 'leave "$p"'
    for entry in reversed(record.entries):
        path = f"$root/{_quote(ground.at(entry.path))}"
        lines += [f"  p={path}"]
        if entry.after.kind == "grown":
            lines += _grown(entry, record.transaction, contents, finished)
        elif entry.before.kind == "absent" and entry.after.kind == "folder":
            lines += ['  rmdir "$p" 2>&-']
        else:
            lines += [
                f"  if {_is(entry.after)}; then {_put(entry.before)}",
                f"  elif {_is(entry.before)}; then :",
                *([f'  elif has "$p" {shlex.quote(entry.line)}; then mend "$p" {shlex.quote(entry.line)}'] if entry.line else []),
                f"  else {_stale(entry, record, contents) if entry.generated else leave}; fi",
            ]
    files = " ".join(f'"$copies"/{name}' for name in [*sorted({*contents, *_sums_names(contents, record)}), RECEIPT, UNDO])
    state = f'"$root"/{_quote(ground.state)}'
    rest = [f"  if grep -q {record.transaction} {state}/{PLAN} 2>&-; then rm -f {state}/{PLAN}; fi"]
    if made:
        rest += [f'  if [ "$(ls -A {state})" = {MADE} ]; then']
        rest += [f"    rm -f {state}/{MADE}"]
        rest += [f'    rmdir "$root"/{_quote(path)} 2>&-' for path in reversed(made)]
        rest += ["  fi"]
    lines += [_TAIL.format(files=files, rest="\n".join(rest) + "\n")]
    return "\n".join(line.rstrip("\n") for line in lines).encode() + b"\n"


def _stale(entry: Entry, record: Record, contents: Mapping[str, bytes]) -> str:
    """Say how to take our change out of a file that others generated since."""
    if entry.path not in (GROUP, GSHADOW):
        return 'stale "$p" "make it anew: update-initramfs -u, update-grub or what your system has for it"'
    named = [(*step.parameters["user"], *step.parameters.get("group", ("render",))) for step in record.steps if "user" in step.parameters]
    before = contents.get(entry.before.sha256, b"")
    joined = [f"gpasswd -d {user} {group}" for user, group in dict.fromkeys(named) if user not in (members(before, group) or ())]
    return f'stale "$p" {shlex.quote("if our member is still in it: " + "; ".join(joined))}'


def _grown(entry: Entry, transaction: str, contents: Mapping[str, bytes], finished: bool) -> list[str]:
    ours = f'[ ! -L "$p" ] && [ -d "$p" ] && [ "$(cat "$p/{grown.MARKER}" 2>&-)" = {transaction} ]'
    check = ":"
    if finished:
        known = contents[entry.after.sha256]
        files, links = grown.counts(known)
        count = f"[ $(( $(find . -name {grown.CACHE} -prune -o -type %s -print | wc -l) )) -eq %d ]"
        sums = f'words=$(sha256sum -c "$copies/{sums_name(entry)}" 2>&-)'
        check = f'(cd "$p" && {count % ("f", files)} && {count % ("l", links)} && {sums})'
    return [
        '  if is_absent "$p"; then :',
        f'  elif {ours} && {check}; then rm -rf "$p"',
        '  else leave "$p"; fi',
    ]


def sums_name(entry: Entry) -> str:
    """The file beside undo.sh with the checksums of a grown folder."""
    return f"{entry.after.sha256}.sums"


def _sums_names(contents: Mapping[str, bytes], record: Record) -> list[str]:
    return [sums_name(entry) for entry in record.entries if entry.after.kind == "grown" and entry.after.sha256 in contents]


def _is(shape: Shape) -> str:
    if shape.kind == "file":
        return f'is_file "$p" {shlex.quote(_marks(shape))} {shape.sha256}'
    if shape.kind == "link":
        return f'is_link "$p" {shlex.quote(shape.target)}'
    if shape.kind == "folder":
        return '[ ! -L "$p" ] && [ -d "$p" ]'
    return 'is_absent "$p"'


def _put(shape: Shape) -> str:
    owner = f"{shape.uid}:{shape.gid}"
    if shape.kind == "file":
        return f'put_file "$p" "$copies/{shape.sha256}" {shape.mode:04o} {owner}'
    if shape.kind == "link":
        return f'put_link "$p" {shlex.quote(shape.target)} {owner}'
    if shape.kind == "folder":
        return f'mkdir "$p" && chown {owner} "$p" && chmod {shape.mode:04o} "$p"'
    return 'rm -f "$p" && sync'


def _marks(shape: Shape) -> str:
    """`ls -n`'s first column, owner and group of a plain file."""
    text = ["-"]
    for shift, special, low, high in ((6, 0o4000, "s", "S"), (3, 0o2000, "s", "S"), (0, 0o1000, "t", "T")):
        bits = (shape.mode >> shift) & 7
        text += ["r" if bits & 4 else "-", "w" if bits & 2 else "-"]
        if shape.mode & special:
            text += [low if bits & 1 else high]
        else:
            text += ["x" if bits & 1 else "-"]
    return f"{''.join(text)} {shape.uid} {shape.gid}"


def _quote(path: str) -> str:
    return shlex.quote(path)
