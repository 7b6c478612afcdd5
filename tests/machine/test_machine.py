"""Collecting: order, absence, refusal, rights, provenance, hostile trees."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

import pytest

from recorded_machines import MACHINES
from rocm_patch import knowledge, machine
from rocm_patch.errors import FormatError
from rocm_patch.machine import gpus, recorded, redact, settings, torches, user
from rocm_patch.model import Known, Unknown
from rocm_patch.root import Root, natural_key

TABLES = knowledge.load()


def collect(path, **options):
    return machine.collect(Root(str(path)), TABLES, **options)


def put(root, path, text):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(text, bytes):
        target.write_bytes(text)
    else:
        target.write_text(text)
    return target


# ------------------------------------------------------------------ GPUs


def test_nodes_are_sorted_as_numbers_and_one_bad_node_hides_nothing():
    found = collect(MACHINES / "two-nodes-one-broken")
    assert [gpu.kfd_node.value for gpu in found.gpus] == [10]
    assert [item.source for item in found.unread] == ["sys/class/kfd/kfd/topology/nodes/3/properties"]
    assert sorted(["10", "2", "1"], key=natural_key) == ["1", "2", "10"]


def test_a_card_that_kfd_refused_is_there_with_its_reason():
    gpu = collect(MACHINES / "rx5500xt-kfd-skipped").gpus[0]
    assert gpu.kfd_node == Known(None, gpus.TOPOLOGY)
    assert gpu.gfx == Known("gfx1012", "PCI id 1002:7340")
    assert gpu.atomics.verdict == "refused"
    assert gpu.atomics.firmware.value == 138


def test_an_unknown_future_card_is_named_from_kfd(copy_of):
    root = copy_of("rx5700xt-native")
    path = root / "sys/class/kfd/kfd/topology/nodes/1/properties"
    path.write_text(path.read_text().replace("gfx_target_version 100100", "gfx_target_version 130501"))
    assert collect(root).gpus[0].gfx.value == "gfx1351"


@pytest.mark.parametrize("text", ["simd_count x\n", "simd_count -1\n", "one two three\n", "simd_count " + "9" * 40 + "\n", "\0\0\n"])
def test_properties_that_are_none_are_refused(text):
    with pytest.raises(FormatError):
        gpus.parse_properties(text, "node")


def config_space(device_capabilities_2):
    """A configuration space with a PCI Express capability at 0x40, as the specification lays it out."""
    config = bytearray(256)
    config[0x34] = 0x40
    config[0x40] = 0x10
    struct.pack_into("<I", config, 0x40 + 0x24, device_capabilities_2)
    return bytes(config)


@pytest.mark.parametrize(
    ("port", "switch", "firmware", "verdict"),
    [
        (0x1C0, 0x40, "0x8a", "available"),  # root port completes 32 and 64 bit, switch routes
        (0x1C0, 0x00, "0x8a", "refused"),  # the switch does not route, old firmware
        (0x000, 0x40, "0x8a", "refused"),
        (0x080, 0x40, "0x8a", "refused"),  # 32-bit completion alone is not enough
        (0x000, 0x40, "0x91", "not needed"),  # firmware 145
        (None, 0x40, "0x8a", "unknown"),  # registers closed to us
    ],
)
def test_the_atomics_verdict_joins_slot_and_firmware(copy_of, port, switch, firmware, verdict):
    root = copy_of("rx5500xt-kfd-skipped")
    (root / "var/log/dmesg").unlink()
    link = root / "sys/bus/pci/devices/0000:0a:00.0"
    card = link.resolve()
    (card / "fw_version/mec_fw_version").write_text(firmware)
    bridges = [part for part in card.parents if part.name.count(":") == 2]
    for bridge in bridges:
        value = port if bridge == bridges[-1] else switch
        where = root / "sys/bus/pci/devices" / bridge.name
        if not where.exists():
            where.symlink_to(os.path.relpath(bridge, where.parent))
        (bridge / "config").write_bytes(config_space(value) if value is not None else bytes(64))
    assert collect(root).gpus[0].atomics.verdict == verdict


# ------------------------------------------------------------------ rights


@pytest.mark.parametrize(
    ("mode", "groups", "expected"),
    [
        ("0660 root:render", "render:x:105:user", True),
        ("0660 root:render", "render:x:105:", False),
        ("0666 root:render", "render:x:105:", True),
        ("0600 root:root", "render:x:105:user", False),
        ("0600 user:user", "render:x:105:", True),
    ],
)
def test_access_is_what_the_recorded_user_has(copy_of, mode, groups, expected):
    root = copy_of("rx5700xt-native")
    text = (root / "recording.toml").read_text()
    (root / "recording.toml").write_text(text.replace('"0660 root:render"', f'"{mode}"'))
    put(root, "etc/group", groups + "\nuser:x:1000:\n")
    assert collect(root).platform.kfd_access.value is expected


def test_modes_that_git_gave_are_no_answer(copy_of):
    root = copy_of("rx5700xt-native")
    (root / "recording.toml").write_text('home = "/home/user"\n')
    os.chmod(root / "dev/kfd", 0o644)
    assert isinstance(collect(root).platform.kfd_access, Unknown)
    os.chmod(root / "dev/kfd", 0o600)
    assert collect(root).platform.kfd_access.value is False
    os.chmod(root / "dev/kfd", 0o666)
    assert collect(root).platform.kfd_access.value is True


@pytest.mark.parametrize(
    "text",
    [
        "home = [",
        "colour = 1\n",
        '[modes]\n"dev/kfd" = "rw"\n',
        "[environment]\nA = 1\n",
        "modes = 5\n",
        "environment = 5\n",
        "home = 5\n",
        'home = "x\\u0000y"\n',
    ],
)
def test_a_recording_file_that_cannot_be_meant_is_refused(tmp_path, text):
    put(tmp_path, "recording.toml", text)
    with pytest.raises(FormatError):
        recorded.read(Root(str(tmp_path)))


# ------------------------------------------------------------------ torch


def site(root, prefix="home/user/p/venv", python="3.12"):
    put(root, f"{prefix}/pyvenv.cfg", f"home = /usr/bin\nversion = {python}.1\n")
    return f"{prefix}/lib/python{python}/site-packages"


@pytest.mark.parametrize(
    ("folder", "file", "build", "toolkit"),
    [
        ("torch-2.5.1+rocm6.2.dist-info", "", "rocm", "6.2"),
        ("torch-2.5.1+cpu.dist-info", "", "cpu", None),
        ("torch-2.9.1+cu128.dist-info", "", "cuda", "12.8"),
        ("torch-2.14.0.dist-info", "__version__ = '2.14.0'\nhip = '7.16.1'\nrocm = '10.1.0'\ncuda = None\n", "rocm", "10.1.0"),
        ("torch-2.8.0.dist-info", "cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "cuda", "12.8"),
        ("torch-2.8.0.dist-info", "cuda = None\nhip = None\n", "cpu", None),
        ("torch-2.6.0+rocm6.4.2.git76481f7c.dist-info", "", "rocm", "6.4.2"),
        ("torch-2.11.0+rocm7.15.0a20260728.dist-info", "", "rocm", "7.15.0a20260728"),
        ("torch-2.8.0.dist-info", "import os; os.abort()\n", None, None),
        ("torch-2.8.0.dist-info", "not python (", None, None),
    ],
)
def test_a_torch_is_read_without_being_run(tmp_path, folder, file, build, toolkit):
    where = site(tmp_path)
    put(tmp_path, f"{where}/{folder}/METADATA", "")
    put(tmp_path, f"{where}/torch/version.py", file)
    put(tmp_path, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    torch = collect(tmp_path).torches[0]
    assert getattr(torch.build, "value", None) == build
    assert getattr(torch.toolkit, "value", None) == toolkit
    assert torch.python.value == "3.12.1"
    assert torch.label == "venv: p/venv"


def test_placeholders_of_the_public_index_are_no_packages():
    torch = collect(MACHINES / "rx5700xt-placeholder-device").torches[0]
    assert set(torch.placeholders) == {"amd-torch-device-gfx1010", "rocm-sdk-device-gfx1010"}
    assert not any("device" in package.name for package in torch.packages)


def test_a_named_interpreter_inside_the_root_comes_first():
    root = MACHINES / "rx6600-cpu-wheel"
    conda = "home/user/miniconda3/envs/vision/bin/python"
    for named in (f"/{conda}", str(root / conda)):
        found = collect(root, interpreters=[named])
        assert found.torches[0].build.value == "cuda", named
        assert len(found.torches) == 2


def test_environments_are_named():
    labels = {torch.label for torch in collect(MACHINES / "rx6600-cpu-wheel").torches}
    assert labels == {"venv: upscaler/venv", "conda: vision"}


# ------------------------------------------------------------------ settings


def values(root, **options):
    said = recorded.read(Root(str(root)))
    who = user.find(Root(str(root)), said)
    found, _ = settings.collect(Root(str(root)), who, TABLES, options.get("environment", {}))
    return {(item.name, item.value, item.origin): item for item in found}


@pytest.mark.parametrize(
    ("path", "text", "origin", "reach"),
    [
        ("etc/environment", 'HSA_XNACK="1"\n', "environment-file", "login"),
        ("etc/security/pam_env.conf", "HSA_XNACK DEFAULT=1\n", "pam-env", "login"),
        ("home/user/.pam_environment", "HSA_XNACK=1\n", "pam-env", "login"),
        ("etc/profile.d/x.sh", "export HSA_XNACK=1 OTHER=2\n", "profile", "login"),
        ("etc/environment.d/x.conf", "HSA_XNACK=1\n", "environment.d", "session"),
        ("home/user/.config/environment.d/x.conf", "HSA_XNACK=1\n", "environment.d", "session"),
        ("home/user/.bashrc", "if true; then\n  export HSA_XNACK='1' # why not\nfi\n", "shell", "login"),
        ("home/user/.config/fish/config.fish", "set -g -x HSA_XNACK 1\n", "fish", "application fish"),
        ("home/user/.bashrc", "[ -z x ] && export HSA_XNACK=1\n", "shell", "login"),
        ("home/user/.bashrc", "export HSA_XNACK=${HSA_XNACK:-1}\n", "shell", "login"),
        ("etc/bash.bashrc", "export HSA_XNACK=1\n", "shell", "login"),
        ("etc/environment", "HSA_XNACK=1 # why\n", "environment-file", "login"),
        ("etc/systemd/system/ollama.service", '[Service]\nEnvironment="HSA_XNACK=1" "A=b"\n', "systemd", "service ollama"),
        ("etc/systemd/system/ollama.service.d/gpu.conf", "[Service]\nEnvironment=HSA_XNACK=1\n", "systemd", "service ollama"),
        (
            "home/user/.config/systemd/user/comfy.service",
            "[Service]\nExecStart=/usr/bin/env HSA_XNACK=1 python main.py\n",
            "systemd",
            "service comfy",
        ),
        ("home/user/.local/share/applications/sd.desktop", "[Desktop Entry]\nExec=env HSA_XNACK=1 python webui.py\n", "desktop", "application sd"),
        ("home/user/stable-diffusion-webui/webui-user.sh", "export HSA_XNACK=1\n", "launcher", "application AUTOMATIC1111 / Forge web UI"),
        ("home/user/miniconda3/envs/sd/etc/conda/activate.d/env.sh", "export HSA_XNACK=1\n", "conda", "application envs/sd"),
    ],
)
def test_every_place_that_can_set_a_variable_is_read(tmp_path, path, text, origin, reach):
    put(tmp_path, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    put(tmp_path, path, text)
    item = values(tmp_path)[("HSA_XNACK", "1", origin)]
    assert item.path == f"/{path}"
    assert item.reach == reach
    assert item.in_force


@pytest.mark.parametrize(
    "text",
    [
        "# export HSA_XNACK=1\n",
        "export HSA_XNACK=$(rm -rf /)\n",
        "export HSA_XNACK=`id`\n",
        "export HSA_XNACK='1\n",
        "echo HSA_XNACK\n",
        'echo "HSA_XNACK=1"\n',
        "HSA_XNACK=1 rocminfo\n",
        "f() {\n export HSA_XNACK=1\n}\n",
        "cat <<EOF\nexport HSA_XNACK=1\nEOF\n",
    ],
)
def test_what_is_no_plain_assignment_is_left_out(tmp_path, text):
    put(tmp_path, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    put(tmp_path, "etc/profile.d/x.sh", text)
    assert not values(tmp_path)


def test_the_last_word_of_a_login_is_in_force(tmp_path):
    put(tmp_path, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    put(tmp_path, "etc/environment", "HSA_XNACK=1\n")
    put(tmp_path, "etc/profile.d/a.sh", "export HSA_XNACK=0\n")
    put(tmp_path, "home/user/.bashrc", "unset HSA_XNACK\n")
    found = values(tmp_path)
    # A shell has none; a desktop session reads no shell file and keeps the first.
    assert [item.value for item in found.values() if item.in_force] == ["1"]
    (tmp_path / "home/user/.bashrc").unlink()
    assert [item.value for item in values(tmp_path).values() if item.in_force] == ["1", "0"]
    put(tmp_path, "etc/environment", "")
    put(tmp_path, "home/user/.bashrc", "export HSA_XNACK=1; unset HSA_XNACK\n")
    assert not any(item.in_force for item in values(tmp_path).values())


def test_module_options_are_compared_with_the_loaded_driver(tmp_path):
    put(tmp_path, "etc/modprobe.d/a.conf", "options amdgpu mtype_local=1 noretry=0 # both\nblacklist nouveau\n")
    put(tmp_path, "sys/module/amdgpu/parameters/mtype_local", "1\n")
    put(tmp_path, "sys/module/amdgpu/parameters/noretry", "-1\n")
    put(tmp_path, "proc/cmdline", "quiet amdgpu.mtype_local=1 amdgpu.cwsr_enable=0\n")
    found = values(tmp_path)
    assert found[("amdgpu.mtype_local", "1", "modprobe")].in_force
    assert not found[("amdgpu.noretry", "0", "modprobe")].in_force
    assert found[("amdgpu.cwsr_enable", "0", "cmdline")].reach == "kernel"


@pytest.fixture
def open_root():
    """A tree that others may enter, and a reader who is not root while the test asks."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_an_unreadable_file_is_unread_and_not_absent(open_root):
    put(open_root, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    os.chmod(put(open_root, "etc/environment", "HSA_XNACK=1\n"), 0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        unread = collect(open_root).unread
    finally:
        if root:
            os.seteuid(0)
    assert [item.source for item in unread] == ["etc/environment"]
    assert "denied" in unread[0].unknown


# ------------------------------------------------------------------ hostile trees


def test_links_stay_inside_the_root(tmp_path):
    outside = tmp_path / "outside"
    put(outside, "secret", "HSA_XNACK=1\n")
    root = tmp_path / "root"
    put(root, "etc/passwd", "user:x:1000:1000::/home/user:/bin/bash\n")
    (root / "etc/environment").symlink_to(outside / "secret")
    (root / "etc/profile.d").symlink_to("../../outside")
    (root / "home").mkdir()
    (root / "home/user").symlink_to("/home/user")  # a loop inside the root
    assert values(root) == {}


def test_a_fifo_and_a_folder_in_place_of_files_do_not_stop_the_diagnosis(tmp_path):
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/environment")
    (tmp_path / "etc/group").mkdir()
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/cmdline")
    found = collect(tmp_path)
    assert "etc/environment" in {item.source for item in found.unread}


# ------------------------------------------------------------------ redaction


def test_nothing_that_says_who_stays_in_a_recording():
    canaries = {
        "alice@example.org": "mail",
        "00:1a:2b:3c:4d:5e": "mac",
        "123e4567-e89b-12d3-a456-426614174000": "uuid",
        "192.168.17.23": "address",
        "/home/alice/x": "home",
        "serial: ABC123XYZ": "serial",
    }
    for number in range(7):  # forty planted secrets, with those above and those below
        canaries |= {
            f"carol{number}.x@mail{number}.example.net": "mail",
            f"de:ad:be:ef:0{number}:{number}a": "mac",
            f"{number}23e4567-e89b-12d3-a456-4266141740{number}b": "uuid",
            f"10.{number}.17.2{number}": "address",
            f"/home/name{number}/x": "home",
        }
    canaries |= {"serial: XYZ9988776": "serial", "unique_id: a1b2c3d4e5": "serial", "GPU-0123456789abcdef": "serial"}
    canaries |= {"fe80::1c2d:3e4f:5a6b:7c8d": "address"}
    assert len(canaries) >= 40 + 5
    for secret in canaries:
        assert secret not in redact.text(f"a {secret} b")
    assert redact.text("torch 2.5.1+rocm6.2 and kernel 6.14.0-33") == "torch 2.5.1+rocm6.2 and kernel 6.14.0-33"
    assert redact.text("0000:0a:00.0") == "0000:0a:00.0"


def test_user_and_host_names_leave_a_recording():
    from rocm_patch.images import installed
    from rocm_patch.model import SCHEMA, Recording

    root = Root(str(MACHINES / "rx5600xt-ubuntu2404-mission"))
    found = machine.collect(root, TABLES)
    text = repr(redact.recording(Recording(SCHEMA, "x", found, installed.scan(root, found, TABLES)), ("cnn-training", "rdna-box")))
    assert "cnn-training" not in text
    assert "rx5600xt-ubuntu2404-mission" not in text
    assert "gfx1010" in text
    assert torches.PLACEHOLDER not in text
