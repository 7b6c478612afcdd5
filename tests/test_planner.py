"""Which steps a diagnosis leads to, and the environment in which one command runs best."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recorded_machines import MACHINES
from rocm_patch import knowledge, launch, machine, planner
from rocm_patch.diagnose import diagnose
from rocm_patch.diagnose.case import Case
from rocm_patch.errors import RefusedError, UsageError
from rocm_patch.images import installed
from rocm_patch.machine import pythons
from rocm_patch.model import Known, Trial, Trials
from rocm_patch.root import Root

TABLES = knowledge.load()
PYTHONS = (("/usr/bin/python3.12", "3.12"),)


def load(name):
    root = Root(str(MACHINES / name))
    found = machine.collect(root, TABLES)
    return Case(found, installed.scan(root, found, TABLES), None, TABLES)


def steps(case, **choices):
    diagnosis = diagnose(case.machine, case.images, TABLES)
    return planner.steps(case, diagnosis, planner.Choices(pythons=PYTHONS, **choices))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rx5600xt-ubuntu2404-mission", [("native-wheel", "user"), ("drop-override", "system"), ("drop-setting", "system")]),
        ("rx5700xt-native", []),
        ("rx5700xt-native-leftover-override", [("drop-override", "user")]),
        ("rx6700xt-pytorch-org", []),
        ("rx5500xt-kfd-skipped", []),
        ("rx6600-cpu-wheel", [("rocm-wheel", "user")]),
        ("rx5700xt-placeholder-device", [("native-wheel", "user")]),
        ("no-amd-gpu", []),
    ],
)
def test_a_plan_holds_what_the_problems_ask_for(name, expected):
    assert [(step.remedy, step.scope) for step in steps(load(name))] == expected


def test_the_wheel_step_names_device_packages_and_exact_pins():
    step = steps(load("rx5600xt-ubuntu2404-mission"))[0]
    packages = step.parameters["packages"]
    assert "torch[device-gfx1010]==2.14.0+rocm10.1.0" in packages
    assert "torchvision[device-gfx1010]==0.29.0a0+rocm10.1.0" in packages  # a pre-release: only an exact pin gets it
    assert {"amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010"} <= set(packages)
    assert {"amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010"} <= set(step.parameters["expect"])
    assert step.parameters["index"] == ("https://stable.repo.amd.com/rocm/whl-next/",)


def test_what_is_taken_out_is_named_by_its_value():
    step = next(step for step in steps(load("rx5600xt-ubuntu2404-mission")) if step.remedy == "drop-override")
    assert step.parameters["unset"] == ("HSA_OVERRIDE_GFX_VERSION=10.3.0",)


def test_in_user_scope_the_override_becomes_the_cards_own_version():
    step = steps(load("rx5700xt-native-leftover-override"))[0]
    assert step.parameters["own"] == ("10.1.0",)


def test_no_python_that_fits_is_said():
    case = load("rx5600xt-ubuntu2404-mission")
    diagnosis = diagnose(case.machine, case.images, TABLES)
    with pytest.raises(UsageError) as caught:
        planner.steps(case, diagnosis, planner.Choices(pythons=(("/usr/bin/python3.8", "3.8"),)))
    assert "3.8" in caught.value.hint


def test_a_refuted_remedy_is_refused_by_name():
    with pytest.raises(RefusedError) as caught:
        steps(load("rx5600xt-ubuntu2404-mission"), remedies=("rocm-5.7-downgrade",))
    assert "no effect" in caught.value.what


def test_a_wheel_for_a_card_without_wheels_is_refused():
    case = load("rx5700xt-native")
    gpu = replace(case.machine.gpus[0], gfx=Known("gfx1013", "test"))
    case = Case(replace(case.machine, gpus=(gpu,)), case.images, None, TABLES)
    with pytest.raises((RefusedError, UsageError)):
        planner.steps(case, diagnose(case.machine, case.images, TABLES), planner.Choices(("native-wheel",), pythons=PYTHONS))


def test_pythons_of_a_tree_are_those_its_torches_were_made_with():
    case = load("rx5600xt-ubuntu2404-mission")
    assert pythons.find(Root(str(MACHINES / "rx5600xt-ubuntu2404-mission")), case.machine) == (("/usr/bin/python3.12", "3.12"),)


# ------------------------------------------------------------------ run


def test_run_leaves_out_what_harms_and_sets_what_helps():
    prepared = launch.prepare(
        load("rx5600xt-ubuntu2404-mission"),
        {"HSA_OVERRIDE_GFX_VERSION": "10.3.0", "MIOPEN_DEVICE_ARCH": "gfx1030", "PATH": "/bin", "AMD_SERIALIZE_KERNEL": "3"},
    )
    assert "HSA_OVERRIDE_GFX_VERSION" not in prepared.environment
    assert "MIOPEN_DEVICE_ARCH" not in prepared.environment
    assert prepared.environment["AMD_SERIALIZE_KERNEL"] == "3"
    assert prepared.environment["PATH"] == "/bin"
    assert prepared.environment["MIOPEN_FIND_MODE"] == "FAST"
    assert prepared.environment["AMDGCN_USE_BUFFER_OPS"] == "0"
    assert any("no code for gfx1010" in line for line in prepared.warnings)


def test_run_keeps_a_sound_override_and_adds_one_where_it_is_needed():
    case = load("rx6700xt-pytorch-org")
    assert launch.prepare(case, {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}).environment["HSA_OVERRIDE_GFX_VERSION"] == "10.3.0"
    assert launch.prepare(case, {}).environment["HSA_OVERRIDE_GFX_VERSION"] == "10.3.0"
    assert "HSA_OVERRIDE_GFX_VERSION" not in launch.prepare(load("rx5700xt-native"), {}).environment


def test_the_users_own_values_win():
    case = load("rx5700xt-native")
    prepared = launch.prepare(case, {"MIOPEN_FIND_MODE": "HYBRID", "HSA_XNACK": "1"}, keep=("HSA_XNACK",))
    assert prepared.environment["MIOPEN_FIND_MODE"] == "HYBRID"
    assert prepared.environment["HSA_XNACK"] == "1"


def test_run_hides_the_integrated_gpu_unless_a_mask_is_set():
    case = load("rx6800xt-raphael-igpu")
    assert launch.prepare(case, {}).environment["ROCR_VISIBLE_DEVICES"] == "0"
    assert "ROCR_VISIBLE_DEVICES" not in launch.prepare(case, {"HIP_VISIBLE_DEVICES": "1"}).environment


# ------------------------------------------------------------------ the hook in an environment


def _torch_in(case, *sites, label="venv: ai"):
    torches = tuple(replace(case.machine.torches[0], site=site, label=label) for site in sites)
    return Case(replace(case.machine, torches=torches), case.images, case.trials, TABLES)


SITE = "/home/u/{}/lib/python3.12/site-packages"


def test_a_hook_goes_into_the_environment_of_the_torch():
    (step,) = steps(_torch_in(load("rx5700xt-native"), SITE.format("ai")), remedies=("miopen-off",))
    assert (step.remedy, step.scope, dict(step.parameters)) == ("miopen-off", "user", {"venv": ("/home/u/ai",), "door": ("miopen_off",)})


def test_of_several_environments_the_user_names_one():
    case = _torch_in(load("rx5700xt-native"), SITE.format("one"), SITE.format("two"))
    with pytest.raises(UsageError) as caught:
        steps(case, remedies=("miopen-off",))
    assert "/home/u/one, /home/u/two" in caught.value.hint
    (step,) = steps(case, remedies=("miopen-off",), values={"venv": "/home/u/three"})
    assert step.parameters["venv"] == ("/home/u/three",)


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ("/usr/lib/python3/dist-packages", "system Python"),
        ("/usr/local/lib/python3.12/site-packages", "this interpreter"),
        ("/home/u/miniconda3/lib/python3.12/site-packages", "conda: base"),
        ("/home/u/.local/lib/python3.12/site-packages", "user site"),
    ],
)
def test_packaged_pythons_get_no_hook(site, label):
    with pytest.raises(RefusedError) as caught:
        steps(_torch_in(load("rx5700xt-native"), site, label=label), remedies=("miopen-off",))
    assert "--set venv=" in caught.value.hint


def test_the_engine_is_untested_on_these_cards_and_planned_only_by_those_who_say_so():
    case = _torch_in(load("rx5700xt-native"), SITE.format("ai"))
    with pytest.raises(RefusedError) as caught:
        steps(case, remedies=("conv-engine",))
    assert "untested on gfx1010" in caught.value.what
    assert "--untested" in caught.value.hint
    (step,) = steps(case, remedies=("conv-engine",), untested=True)
    assert step.parameters["door"] == ("engine",)
    with pytest.raises(RefusedError):  # what was refuted stays refused
        steps(case, remedies=("set-override",), values={"value": "10.3.0"}, untested=True)


def test_no_finding_advises_the_engine_before_a_card_has_run_it():
    for name in ("rx5700xt-native", "rx5600xt-ubuntu2404-mission", "rx6700xt-pytorch-org"):
        case = load(name)
        found = diagnose(case.machine, case.images, TABLES)
        assert not [item for finding in found.findings for item in finding.remedies if item.id == "conv-engine"]


def _with_a_crash(case):
    trials = tuple(
        Trial("conv-64", word, "float32", verdict, 1.0, "", {}, {}) for word, verdict in (("miopen", "crash"), ("miopen-off", "passed"))
    )  # fmt: skip
    return Case(case.machine, case.images, Trials("hip", "x", "x", trials), TABLES)


def _fixed(case):
    return planner.steps(case, diagnose(case.machine, case.images, TABLES, case.trials), planner.Choices(pythons=PYTHONS))


def test_fix_switches_miopen_off_where_a_probe_proved_it():
    (step,) = _fixed(_with_a_crash(_torch_in(load("rx5700xt-native"), SITE.format("ai"), SITE.format("b"))))
    assert (step.remedy, step.parameters["venv"]) == ("miopen-off", ("/home/u/ai",))
    assert _fixed(_with_a_crash(_torch_in(load("rx5700xt-native"), "/usr/lib/python3/dist-packages", label="system Python"))) == ()


def test_a_torch_that_is_about_to_be_replaced_gets_no_hook():
    assert "miopen-off" not in [step.remedy for step in _fixed(_with_a_crash(load("rx5600xt-ubuntu2404-mission")))]


@pytest.mark.parametrize("remedy", ["mtype-local", "neutralise", "environment-profile", "miopen-off"])
def test_a_misspelled_value_is_no_plan_without_it(remedy):
    """It was dropped without a word, and the plan made with the default."""
    with pytest.raises(UsageError, match="--set valeu: no such value") as caught:
        steps(load("rx5700xt-stock-wheel"), remedies=(remedy,), values={"valeu": "2"})
    assert "known: " in caught.value.hint


@pytest.mark.parametrize("pair", ["X", "=1", ""])
def test_a_setting_without_a_value_is_an_error_of_the_command_line(pair):
    with pytest.raises(UsageError, match="set=NAME=VALUE"):
        steps(load("rx5700xt-stock-wheel"), remedies=("environment-profile",), values={"set": pair}, sets=(pair,))
