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
from rocm_patch.model import Known
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
        steps(load("rx5600xt-ubuntu2404-mission"), remedies=("mtype-local",))
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
