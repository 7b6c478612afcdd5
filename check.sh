#!/bin/sh
# Sets up .venv-check and runs every check and test of the project on the installed package, as .ci/run does.
# Arguments go to pytest. Torch: one that python3 can import, else one from ROCM_PATCH_TORCH_SOURCE (a folder of wheels or
# an index), else PyTorch's public CPU index, else the configured index if that has a CPU build; none: those tests skip.
set -eu
cd "$(dirname "$0")"

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed" >&2; exit 2; }
venv=${ROCM_PATCH_CHECK_VENV:-.venv-check}
pip="$venv/bin/pip --disable-pip-version-check"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || { echo "error: on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
echo "Setting up $venv ..."
$pip install --quiet "pytest>=9" "pytest-randomly>=3.15" "hypothesis>=6.100" "expecttest>=0.2" "mypy>=1.10" "ruff>=0.6" "import-linter>=2.0" "build>=1.2" "hatchling>=1.24"
$pip install --quiet --only-binary :all: "llvmlite>=0.50" || echo "No llvmlite for this Python: the tests that compile GPU programs are skipped."
$pip install --quiet --force-reinstall --no-deps .
$pip install --quiet .

torch_python() { # an interpreter that has a torch, or nothing
    for candidate in ${ROCM_PATCH_TEST_TORCH:-} "$python" .venv-torch/bin/python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

install_torch() {
    source=${ROCM_PATCH_TORCH_SOURCE:-}
    "$python" -m venv .venv-torch
    pip="timeout 1200 .venv-torch/bin/pip --disable-pip-version-check install --quiet --retries 1"
    echo "No torch here: installing a CPU build into .venv-torch (about 200 MB to download, 900 MB on disk) ..."
    if [ -n "$source" ] && [ -d "$source" ]; then
        wheel=$(find "$source" -name 'torch-*.whl' | sort | tail -n 1)
        [ -n "$wheel" ] && $pip --find-links "$source" "$wheel" && return
    elif [ -n "$source" ]; then
        PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL='' PIP_FIND_LINKS='' $pip --index-url "$source" torch && return
    else
        # Without pip's configuration: an extra index there would win with a CUDA build.
        PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL='' PIP_FIND_LINKS='' $pip --timeout 15 --index-url https://download.pytorch.org/whl/cpu torch 2>/dev/null && return
        # The plain name would bring gigabytes of CUDA from most indexes: only a build that says +cpu is taken.
        version=$(.venv-torch/bin/pip index versions torch 2>/dev/null | tr ', ' '\n\n' | grep '+cpu$' | head -n 1)
        [ -n "$version" ] && $pip "torch==$version" && return
    fi
    echo "No CPU build of torch could be had; tests that need one are skipped. ROCM_PATCH_TORCH_SOURCE names a folder or an index." >&2
    rm -rf .venv-torch
}

[ -n "$(torch_python)" ] || install_torch
ROCM_PATCH_TEST_TORCH=$(torch_python)
export ROCM_PATCH_TEST_TORCH
echo "torch for the tests: ${ROCM_PATCH_TEST_TORCH:-none}"

"$venv/bin/ruff" check src tests benchmarks tools
"$venv/bin/mypy" --no-error-summary
PYTHONPATH=src "$venv/bin/lint-imports" --no-logo 2>/dev/null || PYTHONPATH=src "$venv/bin/lint-imports"

torch_site() { # the folder of that torch, if this Python can load it
    [ -n "$ROCM_PATCH_TEST_TORCH" ] || return 0
    version='import sys; print(*sys.version_info[:2])'
    [ "$("$ROCM_PATCH_TEST_TORCH" -c "$version")" = "$("$venv/bin/python" -c "$version")" ] || return 0
    "$ROCM_PATCH_TEST_TORCH" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))'
}

# The engine's tests have torch in their own process; the others must do without it, as the command line does.
site=$(torch_site)
failed=0
if [ $# -gt 0 ]; then
    PYTHONPATH="$site" exec "$venv/bin/python" -m pytest "$@"
elif [ -n "$site" ]; then
    # Two halves side by side, since one leaves half of a small machine idle; the words of this one come last.
    said=$(mktemp)
    (
        PYTHONPATH="$site" "$venv/bin/python" -m pytest -p no:cacheprovider tests/conv || failed=1
        "$venv/bin/python" -m pytest -p no:cacheprovider tests/changes || failed=1
        exit $failed
    ) >"$said" 2>&1 &
    other=$!
    trap 'pkill -P $other 2>/dev/null || :; kill $other 2>/dev/null || :; rm -f "$said"' EXIT
    trap 'exit 130' INT TERM
    "$venv/bin/python" -m pytest --ignore=tests/conv --ignore=tests/changes || failed=1
    echo "The convolution engine and the changes to the system:"
    wait $other || failed=1
    cat "$said"
else
    "$venv/bin/python" -m pytest || failed=1
fi
exit $failed
