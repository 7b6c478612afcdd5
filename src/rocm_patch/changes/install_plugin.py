"""Our drop-in for kernel-install: a plugin that adds our words to the loader entry of each kernel that comes later.

It runs after the plugins that write the entry (20-grub, 90-loaderentry), and after their user's own. What it does to an entry
is what `entry_files` does to those that are there: the words that are missing, at the end of the last line of options.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from typing import Final

from rocm_patch.errors import FormatError, RocmPatchError
from rocm_patch.root import State, Tree
from rocm_patch.run import CLEAN, run

PATH: Final = "/etc/kernel/install.d/95-rocm-patch.install"
FOLDERS: Final = ("/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries")
SHELL: Final = "/bin/sh"
TIMEOUT: Final = 30.0
"""Seconds for the plugin, which reads a few small files."""
_TEXT: Final = r"""#!/bin/sh
# Kernel words of rocm-patch, for the loader entries that kernel-install makes. A program keeps this file; once edited it is left alone.
# To see what it is for: rocm-patch status. To take it back: rocm-patch rollback
# Whatever happens here, the kernel's installation goes on: an entry without the words boots as well.
words='@WORDS@'
limit=2047
LC_ALL=C
export LC_ALL
tab=$(printf '\t')

add() {
  if [ -L "$1" ] || [ ! -f "$1" ]; then return; fi
  options=
  lines=0
  kernel=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      linux" "* | linux"$tab"*) kernel=${line#linux} ;;
      options" "* | options"$tab"*) options="$options ${line#options}"; lines=$((lines + 1)) ;;
    esac
  done <"$1"
  # A unified image has its own line, and an entry for repairs is left as it is.
  if [ -z "$kernel" ] || [ "$lines" -eq 0 ]; then return; fi
  missing=
  set -f
  for word in $words; do
    found=
    for have in $options; do
      case $have in single | recovery | rescue | emergency | 1 | s | S | systemd.unit=rescue.target) return ;; esac
      if [ "$have" = "$word" ]; then found=yes; fi
    done
    if [ -z "$found" ]; then missing="$missing $word"; fi
  done
  if [ -z "$missing" ]; then return; fi
  line="BOOT_IMAGE=$kernel $options$missing"
  if [ "${#line}" -gt "$limit" ]; then echo "rocm-patch: no room for$missing in $1" >&2; return; fi
  temporary=${1%/*}/.rocm-patch-$(printf '%08x%08x' "$$" 0)
  rm -f "$temporary"
  if cp -p "$1" "$temporary" && (
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
      case $line in
        options" "* | options"$tab"*)
          number=$((number + 1))
          if [ "$number" -eq "$lines" ]; then line="$line$missing"; fi ;;
      esac
      printf '%s\n' "$line" || exit 1
    done <"$1"
  ) >"$temporary" && { sync "$temporary" 2>/dev/null || sync; } && mv -f "$temporary" "$1"; then :; else
    rm -f "$temporary"
    echo "rocm-patch: $1 stays without$missing" >&2
  fi
}

if [ "${1-}" != add ] || [ -z "${2-}" ]; then exit 0; fi
case $2 in 0-rescue*) exit 0 ;; esac
token=${KERNEL_INSTALL_ENTRY_TOKEN-}
machine=${KERNEL_INSTALL_MACHINE_ID-}
if [ -z "$token$machine" ]; then read -r machine </etc/machine-id || exit 0; fi
for folder in "${KERNEL_INSTALL_BOOT_ROOT:-/boot}/loader/entries" @FOLDERS@; do
  for name in "$token" "$machine"; do
    set +f
    for entry in "$folder/$name-$2.conf" "$folder/$name-$2+"*.conf; do
      if [ -n "$name" ]; then add "$entry"; fi
    done
  done
done
exit 0
""".replace("@FOLDERS@", " ".join(FOLDERS))
_WORDS: Final = re.compile(r"^words='([A-Za-z0-9_.,:=-]+(?: [A-Za-z0-9_.,:=-]+)*)'$", re.MULTILINE)


def text_of(words: Sequence[str]) -> bytes:
    """The plugin's text; `parse` reads it back."""
    return _TEXT.replace("@WORDS@", " ".join(words)).encode()


def parse(now: State) -> tuple[str, ...]:
    """The words of a plugin of ours; none where there is none.

    Raises:
        FormatError: it is not what we write.
    """
    if now.kind == "absent":
        return ()
    found = _WORDS.search(now.data.decode("utf-8", "replace")) if now.kind == "file" else None
    words = tuple(found[1].split(" ")) if found else ()
    if not words or text_of(words) != now.data:
        raise FormatError(f"{PATH} is not as rocm-patch writes it")
    return words


def tried(words: Sequence[str], entry: bytes, keep: Sequence[int] = ()) -> bytes:
    """What the plugin makes of an entry: run by the shell on a copy, in a folder of its own, under a kernel's name that nobody has.

    Raises:
        RocmPatchError: the shell does not take it, or it failed.
    """
    name, kernel = "rocm-patch-check", "0.0.0-rocm-patch-check"
    with tempfile.TemporaryDirectory(prefix="rocm-patch-") as folder:
        tree, plugin, place = Tree(folder), f"{folder}/{os.path.basename(PATH)}", f"loader/entries/{name}-{kernel}.conf"
        tree.ensure_folder(os.path.dirname(place))
        tree.create(os.path.basename(PATH), text_of(words))
        tree.create(place, entry)
        environment = {**CLEAN, "KERNEL_INSTALL_BOOT_ROOT": folder, "KERNEL_INSTALL_ENTRY_TOKEN": name, "KERNEL_INSTALL_LAYOUT": "bls"}
        for argv in ([SHELL, "-n", plugin], [SHELL, plugin, "add", kernel, f"{folder}/{name}/{kernel}", f"{folder}/linux"]):
            ended = run(argv, timeout=TIMEOUT, environment=environment, cwd=folder, keep=keep)
            if ended.code != 0 or ended.err:
                raise RocmPatchError(f"{PATH} does not run as it should: {ended.text}")
        return tree.state(place).data
