"""A small library of our own making and the recipe that builds it, through the very code that builds MIOpen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from rocm_patch.root import Root
from rocm_patch.sources import build, build_recipe

UNITS = 8

RECIPE = """
[[recipe]]
component = "rocr"
name = "of our own making"
versions = ">=1,<2"
source = "https://example.org/recipe"
date = "2026-11"
installed = { apt = "no-such-package-of-ours" }
disk = 20
memory = 64
silence = %(silence)s
configure = [["{sh}", "{source}/configure", "{source}", "{build}"]]
build = [["{ninja}", "-C", "{build}", "-j", "{jobs}"]]
install = [["{sh}", "{source}/install", "{build}", "{stage}"]]
[[recipe.proof]]
file = "lib/libsmall.so.1.*"
soname = "libsmall.so.1"
symbols = ["small_sum"]
loads = true
[[recipe.tool]]
name = "sh"
commands = ["sh"]
packages = { apt = "dash", dnf = "dash", pacman = "dash", zypper = "dash" }
[[recipe.tool]]
name = "cc"
commands = ["cc"]
packages = { apt = "gcc", dnf = "gcc", pacman = "gcc", zypper = "gcc" }
[[recipe.tool]]
name = "ninja"
commands = ["ninja", "ninja-build"]
packages = { apt = "ninja-build", dnf = "ninja-build", pacman = "ninja", zypper = "ninja" }
%(more)s
"""

CONFIGURE = r"""set -e
source=$1 build=$2
{
  echo "rule cc"
  echo "  command = cc -O1 -fPIC -ffile-prefix-map=$source=. -c \$in -o \$out"
  echo "rule so"
  echo "  command = cc -shared -Wl,-soname,libsmall.so.1 -Wl,--build-id=none \$in -o \$out"
  objects=
  for file in $source/*.c; do
    object=$(basename $file .c).o
    echo "build $object: cc $file"
    objects="$objects $object"
  done
  echo "build libsmall.so.1.0: so$objects"
} > $build/build.ninja.new
mv $build/build.ninja.new $build/build.ninja
"""

INSTALL = """set -e
mkdir -p $2/lib $2/share
cp $1/libsmall.so.1.0 $2/lib/
ln -s libsmall.so.1.0 $2/lib/libsmall.so.1
ln -s libsmall.so.1 $2/lib/libsmall.so
echo words > $2/share/words
"""


def plant(folder: Path) -> Path:
    """The sources: files that take a compiler a moment, one of which the others need."""
    folder.mkdir(parents=True)
    for number in range(UNITS):
        functions = "\n".join(f"int small_{number}_{index}(int x) {{ return x * {index} + {number}; }}" for index in range(20))
        (folder / f"unit{number:02}.c").write_text(functions)
    calls = " + ".join(f"small_{number}_7(x)" for number in range(UNITS))
    names = "\n".join(f"int small_{number}_7(int);" for number in range(UNITS))
    (folder / "sum.c").write_text(f"{names}\nint small_sum(int x) {{ return {calls}; }}\n")
    (folder / "configure").write_text(CONFIGURE)
    (folder / "install").write_text(INSTALL)
    return folder


def recipes(more: str = "", silence: int = 5, **changes: str):
    text = RECIPE % {"more": more, "silence": silence}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return build_recipe.parse(text, "test")


def request(source, **more) -> build.Request:
    values = {"version": "1.2.3", "prefix": "/opt/small", "jobs": 2, "patches": ("none",), "allow_root": True, **more}
    return build.Request("rocr", source=str(source), **values)


def planned(source, cache, table=None, root=None, **more) -> build.Plan:
    environment = {"XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    return build.plan(request(source, **more), table or recipes(), root or Root("/"), environment)


def start(source, cache, **options) -> subprocess.Popen:
    """The same build in a process of its own, which can be killed."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import build_project as p; p.main(sys.argv[1], sys.argv[2])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ), **options
    )


def main(source: str, cache: str) -> None:
    from rocm_patch.errors import RocmPatchError

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background of a shell is born deaf to it
    try:
        result = build.run(planned(source, cache), progress=lambda step: print(step.stage, step.done, step.total, flush=True))
    except RocmPatchError as error:
        print(type(error).__name__, error.what, "|", error.hint)
        raise SystemExit(error.exit_code) from None
    print("result", result.digest, ",".join(result.reused))
