#!/bin/sh
# Sets rocm-patch up in .venv and does its main job. With an AMD card: diagnose it and offer to repair it.
# Without one: the same way on a recorded RX 5600 XT, in a scratch copy, and back again. Downloads about 30 MB.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "error: no python3 on this machine; install Python 3.10 or newer" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $("$python" -V) is too old; PYTHON=/path/to/python3.10 sh quickstart.sh" >&2; exit 2; }
if [ ! -x .venv/bin/rocm-patch ] || [ -n "$(find src pyproject.toml -newer .venv/bin/rocm-patch -print -quit)" ]; then
    echo "Setting up .venv ..."
    "$python" -m venv .venv || { echo "error: python3 cannot make environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
    .venv/bin/pip install --quiet --disable-pip-version-check . || { echo "error: pip could not install what rocm-patch needs (see above)" >&2; exit 1; }
fi
export PATH="$PWD/.venv/bin:$PATH"

if rocm-patch doctor --json 2>/dev/null | grep -q '"gfx"'; then
    exec rocm-patch fix "$@"
fi

echo "No AMD GPU here: the way on a recorded RX 5600 XT, in a scratch copy of it."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -a tests/machines/rx5600xt-ubuntu2404-mission "$scratch/root"
digest() { # content, mode, owner and link target of everything, as one line
    (cd "$scratch/root" && find . -exec stat -c '%n %f %u %g' {} + | sort && find . -type l -exec readlink {} + | sort && find . -type f -exec sha256sum {} + | sort) | sha256sum
}
step() { printf '\n=== %s\n\n' "$*"; }
before=$(digest)

step "1. what is wrong: rocm-patch doctor --root ROOT"
rocm-patch doctor --root "$scratch/root" || [ $? -eq 1 ]
step "2. what would change: rocm-patch plan --root ROOT -o plan.json"
rocm-patch plan --root "$scratch/root" -o "$scratch/plan.json"
step "3. change it: rocm-patch apply --root ROOT plan.json --yes"
rocm-patch apply --root "$scratch/root" "$scratch/plan.json" --yes >"$scratch/applied"
sed -n '/^applied/,$p' "$scratch/applied"
rocm-patch status --root "$scratch/root"
step "4. prove: rocm-patch probe --quick (with whatever torch is on this machine)"
code=0
[ ! -x .venv-torch/bin/python ] || set -- --python "$PWD/.venv-torch/bin/python"
rocm-patch probe --quick "$@" || code=$?
case $code in 0 | 3) ;; *) exit "$code" ;; esac
step "5. take it back: rocm-patch rollback --root ROOT --all --yes"
rocm-patch rollback --root "$scratch/root" --all --yes
if [ "$before" = "$(digest)" ]; then
    echo "The scratch root is what it was: every byte, mode, owner and link."
else
    echo "error: the scratch root differs from what it was" >&2
    exit 1
fi
