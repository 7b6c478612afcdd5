"""The hook: it switches the engine on when torch is imported, costs nothing where it is off, and never breaks `import torch`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rocm_patch
from torch_standin import ENGINE, NEW, OLD, environment, put_hook, python, write

SOURCE = str(Path(rocm_patch.__file__).parents[1])
SAY = "import torch, json, rocm_patch_conv; print(json.dumps(rocm_patch_conv.status()))"
MIOPEN = "import torch; print(torch.backends.cudnn.enabled)"


@pytest.fixture(params=[OLD, NEW], ids=["pth", "entry point"])
def site(request, tmp_path):
    """An environment with the hook, through either door."""
    site = environment(tmp_path / "venv", request.param)
    put_hook(site)
    assert (site / "rocm_patch_autoload.pth").exists() == (request.param == OLD)
    return site


def state(site, *options, code=SAY, **variables):
    ended = python(site, code, *options, **variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return json.loads(ended.stdout)


# ------------------------------------------------------------------ on and off


def test_on_when_torch_is_imported(site):
    assert state(site) == {"enabled": True, "times": 1, "devices": ["cuda"]}
    assert state(site, "-I")["times"] == 1
    assert state(site, code="import importlib.util; importlib.util.find_spec('torch')\n" + SAY)["times"] == 1
    assert state(site, code="import torch.backends\n" + SAY)["times"] == 1


@pytest.mark.parametrize(
    "variables", [{"ROCM_PATCH_CONV": "0"}, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "true"}], ids=str
)
def test_the_users_switches_win(site, variables):
    assert state(site, **variables)["enabled"] is False


def test_the_switch_counts_when_torch_comes_not_when_python_starts(site):
    assert state(site, code="import os; os.environ['ROCM_PATCH_CONV'] = '0'\n" + SAY)["enabled"] is False


def test_without_site_nothing_happens_by_the_pth(site):
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n" + SAY
    by_entry_point = not (site / "rocm_patch_autoload.pth").exists()
    assert state(site, "-S", code=code)["enabled"] is by_entry_point


def test_both_doors_at_once_open_once(tmp_path):
    site = environment(tmp_path / "venv", OLD)
    put_hook(site)
    shutil.rmtree(site / "torch")
    shutil.rmtree(next(site.glob("torch-*.dist-info")))
    environment(tmp_path / "other", NEW)
    (other,) = (tmp_path / "other").glob("lib/python3*/site-packages")
    shutil.copytree(other / "torch", site / "torch")  # torch was upgraded; the .pth file of the old one is still there
    assert state(site)["times"] == 1
    assert state(site, TORCH_DEVICE_BACKEND_AUTOLOAD="0")["enabled"] is False


def test_a_spawned_process_has_it_too(site, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing\n"
        "def work(_):\n    import torch, rocm_patch_conv\n    return rocm_patch_conv.status()['times']\n"
        "if __name__ == '__main__':\n    with multiprocessing.get_context('spawn').Pool(2) as pool:\n        print(pool.map(work, range(2)))\n"
    )
    ended = subprocess.run([site.parents[2] / "bin" / "python", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("[1, 1]\n", "")


# ------------------------------------------------------------------ MIOpen off


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize(("hip", "expected"), [("7.2.0", "False"), (None, "True")])
def test_miopen_is_switched_off_in_a_rocm_torch_only(tmp_path, version, hip, expected):
    site = environment(tmp_path / "venv", version, hip=hip)
    put_hook(site, "miopen_off")
    assert python(site, MIOPEN).stdout.strip() == expected
    assert python(site, MIOPEN, ROCM_PATCH_CONV="0").stdout.strip() == "True"
    assert not (site / "rocm_patch_conv").exists()


# ------------------------------------------------------------------ it never breaks anything

FAILURES = {
    "the engine raises": "def enable(devices):\n    raise RuntimeError('no\\nluck')\ndef disable():\n    pass\n",
    "taking it back raises too": "def enable(devices):\n    raise RuntimeError('no luck')\ndef disable():\n    raise ValueError('nor here')\n",
    "it ends the program": "def enable(devices):\n    raise SystemExit(3)\ndef disable():\n    pass\n",
    "it does not compile": "def enable(:\n",
    "it wants what is not there": "import nowhere_at_all\n",
    "it has another interface": "",
}


@pytest.mark.parametrize("body", FAILURES.values(), ids=FAILURES)
def test_an_engine_that_fails_leaves_torch_as_it_is(site, body):
    (site / "rocm_patch_conv" / "__init__.py").write_text(body)
    ended = python(site, "import torch; print(torch.__version__)")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in (OLD, NEW)
    assert ended.stderr.count("\n") == 1
    assert "rocm-patch: torch runs as it is" in ended.stderr
    assert python(site, "import torch", ROCM_PATCH_CONV="0").stderr == ""
    assert python(site, "import sys; sys.stderr = None; import torch; print(torch.__version__)").stdout.strip() in (OLD, NEW)


def test_ctrl_c_goes_through(site):
    (site / "rocm_patch_conv" / "__init__.py").write_text("def enable(devices):\n    raise KeyboardInterrupt\ndef disable():\n    pass\n")
    assert python(site, "import torch").stderr.strip().endswith("KeyboardInterrupt")


def test_half_of_an_enabled_engine_is_taken_back(site):
    (site / "rocm_patch_conv" / "__init__.py").write_text(
        "on = []\ndef enable(devices):\n    on.append(1)\n    raise RuntimeError\ndef disable():\n    on.clear()\ndef status():\n    return on\n"
    )
    ended = python(site, SAY)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "gone", ["rocm_patch_conv", "rocm_patch_conv/__init__.py", "rocm_patch_autoload/__init__.py", "rocm_patch_autoload", "the info"]
)
def test_python_starts_and_torch_comes_whatever_part_is_gone(gone, tmp_path):
    site = environment(tmp_path / "venv", OLD)
    put_hook(site)
    path = next(site.glob("rocm_patch_autoload-*.dist-info")) if gone == "the info" else site / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    start = python(site, "print(1)")
    assert (start.stdout, start.stderr) == ("1\n", "")
    ended = python(site, "import torch; print(torch.__version__)")
    assert (ended.returncode, ended.stdout.strip()) == (0, OLD)
    assert ended.stderr.count("\n") == (1 if gone.startswith("rocm_patch_conv") else 0)


def test_a_start_without_torch_loads_one_small_module(tmp_path):
    site = environment(tmp_path / "venv", OLD)
    modules = "import sys; print(sorted(sys.modules))"
    before = set(json.loads(python(site, modules).stdout.replace("'", '"')))
    put_hook(site)
    after = set(json.loads(python(site, modules).stdout.replace("'", '"')))
    assert after - before <= {"rocm_patch_autoload", "__future__", "encodings.utf_8_sig"}  # the last by site itself, for any .pth file
    assert "rocm_patch_autoload" in after
    shutil.rmtree(site / "torch")
    ended = python(site, "import torch")
    assert ended.stderr.strip().endswith("ModuleNotFoundError: No module named 'torch'")


def test_a_torch_that_fails_fails_as_before(site):
    body = (site / "torch" / "__init__.py").read_text()
    (site / "torch" / "__init__.py").write_text("raise ImportError('libamdhip64.so.6: not there')\n")
    code = "try:\n    import torch\nexcept ImportError as error:\n    print(error)\n"
    ended = python(site, code)
    assert (ended.stdout.strip(), ended.stderr) == ("libamdhip64.so.6: not there", "")
    mend = f"open({str(site / 'torch' / '__init__.py')!r}, 'w').write({body!r})\nimport importlib; importlib.invalidate_caches()\n"
    assert state(site, "-B", code="try:\n    import torch\nexcept ImportError: pass\n" + mend + SAY)["times"] == 1


HOOK = """
import importlib.abc, importlib.util, sys
class Loader(importlib.abc.Loader):
    def __init__(self, inner): self.inner = inner
    def create_module(self, spec): return self.inner.create_module(spec)
    def exec_module(self, module):
        self.inner.exec_module(module)
        module.seen = getattr(module, "seen", 0) + 1
class Finder:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != "torch" or self.busy: return None
        self.busy = True
        try: spec = importlib.util.find_spec(name)
        finally: self.busy = False
        if spec is not None: spec.loader = Loader(spec.loader)
        return spec
class Old:
    def find_module(self, name, path=None): return None
"""


@pytest.mark.parametrize("place", ["0", "1", "len(sys.meta_path)"])
def test_other_import_hooks_live_beside_it(site, place):
    code = HOOK + f"sys.meta_path.insert({place}, Finder())\nsys.meta_path.insert(0, Old())\n"
    code += "import torch, json, rocm_patch_conv; print(json.dumps([rocm_patch_conv.status()['times'], getattr(torch, 'seen', 0)]))"
    ended = python(site, code, "-W", "ignore")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [1, 0 if place.startswith("len") else 1]


def test_nothing_of_it_is_left_in_the_import_system(site):
    code = "import torch, sys; print(type(torch.__spec__.loader).__name__, vars(torch.__spec__.loader).keys() & {'exec_module'})\n"
    code += "print([type(item).__module__ for item in sys.meta_path if 'rocm' in type(item).__module__])"
    assert python(site, code).stdout == "SourceFileLoader set()\n[]\n"


def test_a_loader_that_takes_no_attributes_is_left_alone(tmp_path):
    site = environment(tmp_path / "venv", OLD)
    put_hook(site)
    code = "import sys, importlib.machinery, importlib.util\nclass Slots:\n    __slots__ = ()\n    def create_module(self, spec): return None\n"
    code += "    def exec_module(self, module): module.by_slots = True\n"
    code += "class Finder:\n    def find_spec(self, name, path=None, target=None):\n"
    code += "        return importlib.machinery.ModuleSpec(name, Slots()) if name == 'torch' else None\n"
    code += "sys.meta_path.insert(1, Finder())\nimport torch; print(torch.by_slots)"
    ended = python(site, code)
    assert (ended.stdout, ended.stderr) == ("True\n", "")


# ------------------------------------------------------------------ the package's own entry point


def own(code, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env={**kept, "PYTHONPATH": SOURCE, **variables})


@pytest.mark.parametrize("value", [None, "0", "", "true"])
def test_our_own_entry_point_loads_no_engine_unless_asked(value):
    code = "import sys, rocm_patch.autoload as hook; hook.load()\n"
    code += "print(sorted(name for name in sys.modules if name.startswith('rocm_patch')), 'torch' in sys.modules)"
    ended = own(code, **({} if value is None else {"ROCM_PATCH_CONV": value}))
    assert ended.stdout.strip() == "['rocm_patch', 'rocm_patch.autoload'] False"
    assert ended.stderr == ""


def test_our_own_entry_point_is_declared(tmp_path):
    import importlib.metadata

    found = [item for item in importlib.metadata.entry_points(group="torch.backends") if item.name == "rocm_patch"]
    if not found:
        pytest.skip("rocm-patch is not installed here, or its installation is older than the entry point")
    assert found[0].value == "rocm_patch.autoload:load"


def test_two_engines_are_not_switched_on_over_each_other(site):
    write(site, {f"rocm_patch/conv/{name}": data for name, data in ENGINE.items()})
    (site / "rocm_patch" / "__init__.py").write_text("")
    code = "import rocm_patch.conv; rocm_patch.conv.enable(('cpu',))\n" + SAY
    assert state(site, code=code)["enabled"] is False
