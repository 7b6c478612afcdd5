"""Which library is the one that is loaded: torches of each kind, each means, and what LD_DEBUG=libs says of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

import pytest
import rocm_stand_in as stand

from rocm_patch.apply import apply
from rocm_patch.changes import Locations, outlook, prefix_elf, prefix_means, prefix_reach, prefix_users
from rocm_patch.changes.prefix_manifest import manifest_of
from rocm_patch.errors import RefusedError, UsageError
from rocm_patch.launch import Launch, with_prefix
from rocm_patch.model import SCHEMA, Plan, Step
from rocm_patch.root import Root

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="there is no C compiler")
COMPONENTS = ("miopen", "hip", "rocr")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A system's ROCm, torches of four kinds, and a patched version of each component; nobody changes them."""
    base = tmp_path_factory.mktemp("rocm")
    numbered = stand.stubs(base / "stub", numbered=True)
    stand.plain(base / "rocm/lib", "system", numbered, "-Wl,-rpath,$ORIGIN", *stand.RUNPATH)
    stand.torch(base / "system", numbered)
    stand.torch(base / "runpath", numbered, f"-Wl,-rpath,{base}/rocm/lib", *stand.RUNPATH)
    stand.torch(base / "rpath", numbered, f"-Wl,-rpath,{base}/rocm/lib", *stand.RPATH)
    stand.wheel(base / "wheel", base / "stub")
    stand.wheel(base / "wheel-runpath", base / "stub", stand.RUNPATH)
    stand.wheel(base / "marked", base / "stub", mark="-1a2b3c4d")
    stand.sdk(base / "sdk", base / "stub")
    for component in COMPONENTS:
        stand.patched(base / "patched" / component, base / "stub", component)
    return base


def reached(made, component, site, tmp_path, **environment):
    """What `run --prefix` makes of an environment, and what came of it."""
    found = with_prefix(Launch({"HOME": str(tmp_path), **environment}, (), ()), str(made / "patched" / component), [str(made / site)])
    return found, stand.run(made / site, dict(found.environment), tmp_path / "log")


def only_theirs(seen, word):
    return set(seen.answers.values()) == {word}


# ------------------------------------------------------------------ the system's ROCm


@pytest.mark.parametrize(("site", "component"), [*((site, name) for site in ("system", "runpath") for name in COMPONENTS), ("rpath", "rocr")])
def test_a_torch_that_asks_the_system_takes_it_by_the_library_path(made, component, site, tmp_path):
    old = {"LD_LIBRARY_PATH": str(made / "rocm/lib")} if site == "system" else {}
    assert only_theirs(stand.run(made / site, old, tmp_path / "before"), "system")
    found, seen = reached(made, component, site, tmp_path, **old)
    assert found.warnings == ()
    assert "LD_PRELOAD" not in found.environment
    assert seen.answers == {
        **dict.fromkeys(seen.answers, "system"),
        component: "patched",
        **({"miopen_hip": "patched"} if component == "hip" else {}),
    }
    assert seen.files(component) == [f"{made}/patched/{component}/lib/{stand.SONAMES[component]}"]


def test_the_same_where_the_cache_of_the_loader_names_the_folder(made, tmp_path):
    """/etc/ld.so.conf: a cache of our own in the place of the machine's, in a mount namespace."""
    cache = tmp_path / "cache"
    (tmp_path / "conf").write_text(f"{made}/rocm/lib\n")
    own = ["unshare", "--mount", "sh", "-c", f'mount --bind {cache} /etc/ld.so.cache && exec "$@"', "sh"]
    try:
        subprocess.run(["/sbin/ldconfig", "-X", "-C", cache, "-f", tmp_path / "conf"], check=True, capture_output=True)
        subprocess.run([*own, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount namespace, or no ldconfig")
    assert only_theirs(stand.run(made / "system", {}, tmp_path / "before", *own), "system")
    found = with_prefix(Launch({"HOME": str(tmp_path)}, (), ()), str(made / "patched/miopen"), [str(made / "system")])
    seen = stand.run(made / "system", dict(found.environment), tmp_path / "log", *own)
    assert (seen.answers["miopen"], seen.answers["hip"]) == ("patched", "system")
    assert seen.files("miopen") == [f"{made}/patched/miopen/lib/libMIOpen.so.1"]


# ------------------------------------------------------------------ wheels that bring their own


@pytest.mark.parametrize(
    ("site", "component"), [*((site, name) for site in ("wheel", "sdk") for name in COMPONENTS), ("rpath", "miopen"), ("rpath", "hip")]
)
def test_a_torch_that_keeps_its_own_takes_it_by_preloading(made, component, site, tmp_path):
    own = "system" if site == "rpath" else "wheel"
    path = {"LD_LIBRARY_PATH": str(made / "patched" / component / "lib")}
    assert only_theirs(stand.run(made / site, path, tmp_path / "before"), own)  # the library path alone does nothing
    found, seen = reached(made, component, site, tmp_path)
    assert found.warnings == ()
    assert seen.code == 0, seen.words
    assert seen.answers == {**dict.fromkeys(seen.answers, own), component: "patched", **({"miopen_hip": "patched"} if component == "hip" else {})}
    mine, others = f"{made}/patched/{component}/lib/", [name for name in COMPONENTS if name != component]
    loaded = seen.files(component)
    assert [path for path in loaded if path.startswith(mine)]
    # rocm_sdk opens its own by its path all the same, after ours: nobody calls it.
    opened = site == "sdk" and component != "rocr"
    assert len(loaded) == (2 if opened else 1)
    assert all(len(seen.files(name)) == 1 for name in others), "two stacks in one process"


def test_a_wheel_with_a_runpath_takes_it_by_the_library_path(made, tmp_path):
    assert only_theirs(stand.run(made / "wheel-runpath", {}, tmp_path / "before"), "wheel")
    found, seen = reached(made, "miopen", "wheel-runpath", tmp_path)
    assert "LD_PRELOAD" not in found.environment
    assert seen.answers == {"miopen": "patched", "hip": "wheel", "rocr": "wheel", "miopen_hip": "wheel"}
    assert seen.files("miopen") == [f"{made}/patched/miopen/lib/libMIOpen.so"]


def test_a_path_in_the_preload_is_not_enough_for_a_wheel(made, tmp_path):
    """What people try: it needs HIP by its number, which the wheel has under another name, and the wheel's own is loaded beside it."""
    ours = f"{made}/patched/miopen/lib/libMIOpen.so.1"
    seen = stand.run(made / "wheel", {"LD_PRELOAD": ours}, tmp_path / "one")
    assert seen.code != 0
    assert "libamdhip64.so.6: cannot open shared object file" in seen.words
    seen = stand.run(made / "wheel", {"LD_PRELOAD": f"{made}/wheel/torch/lib/libamdhip64.so {ours}"}, tmp_path / "two")
    assert seen.answers["miopen"] == "patched"
    assert len(seen.files("miopen")) == 2


@pytest.mark.parametrize(("site", "rocm"), [("rpath", "rocm/lib"), ("sdk", "sdk/_rocm_sdk_core/lib")])
def test_a_path_in_the_preload_does_where_the_names_have_numbers_and_what_it_needs_is_found(made, site, rocm, tmp_path):
    path = {"LD_PRELOAD": f"{made}/patched/miopen/lib/libMIOpen.so.1"}
    assert "libamdhip64.so.6: cannot open shared object file" in stand.run(made / site, path, tmp_path / "one").words
    assert stand.run(made / site, {**path, "LD_LIBRARY_PATH": f"{made}/{rocm}"}, tmp_path / "two").answers["miopen"] == "patched"


@pytest.mark.parametrize("site", ["wheel", "marked", "sdk"])
def test_a_link_in_the_wheels_own_folder(made, site, tmp_path):
    """By hand, and with no environment at all: what the words of a plan name where nothing of ours reaches."""
    copy = tmp_path / "copy"
    shutil.copytree(made / site, copy)
    names = {"wheel": "torch/lib/libMIOpen.so", "marked": "torch/lib/libMIOpen-1a2b3c4d.so"}
    own = copy / names.get(site, "_rocm_sdk_libraries_gfx101X_dgpu/lib/libMIOpen.so.1")
    before = own.read_bytes()
    there = prefix_reach.place(Root("/"), str(copy))
    given = prefix_reach.libraries(str(made / "patched/miopen"))
    if site != "marked":  # no version has that name; of the others' one that lacks the name that is asked for
        given = [prefix_reach.Library("libMIOpen.so.1", frozenset(), ())]
    words = prefix_means.means(given, there, str(made / "patched/miopen")).lacks
    link, back = words.partition("By hand: ")[2].split("; back: ")
    subprocess.run(["sh", "-c", link], check=True)
    seen = stand.run(copy, {}, tmp_path / "log")
    assert seen.answers == {"miopen": "patched", "hip": "wheel", "rocr": "wheel", "miopen_hip": "wheel"}
    assert seen.files("miopen") == [str(own)]
    assert os.path.realpath(own) == f"{made}/patched/miopen/lib/libMIOpen.so.1.0"
    subprocess.run(["sh", "-c", back], check=True)
    assert own.read_bytes() == before
    assert not own.is_symlink()


def test_no_child_of_it_complains(made, tmp_path):
    """LD_PRELOAD is inherited: a shell that such a program starts loads the library too, and says nothing."""
    found, _ = reached(made, "miopen", "wheel", tmp_path)
    ended = subprocess.run(
        ["sh", "-c", "echo fine"], env={**found.environment, "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("fine\n", "")


# ------------------------------------------------------------------ what fits


def test_another_major_is_refused_with_both_names(made, tmp_path):
    stand.patched(tmp_path / "two", tmp_path / "stub", "miopen", miopen="libMIOpen.so.2")
    given = prefix_reach.libraries(str(tmp_path / "two"))
    for site in ("wheel", "sdk", "system", "rpath"):
        there = prefix_reach.place(Root("/"), str(made / site))
        with pytest.raises(RefusedError, match=r"this is libMIOpen\.so\.2, and the torch in .* uses libMIOpen\.so\.1") as refusal:
            prefix_means.check(given, [there])
        assert refusal.value.exit_code == 5
    with pytest.raises(RefusedError, match=r"libMIOpen\.so\.2"):
        with_prefix(Launch({}, (), ()), str(tmp_path / "two"), [str(made / "wheel")])


def test_another_major_of_what_it_needs_is_refused_too(made, tmp_path):
    """MIOpen's own number has been 1 in every release: what tells a ROCm 5 build from a ROCm 6 one is the HIP that it needs."""
    stand.patched(tmp_path / "five", tmp_path / "stub", "miopen", hip="libamdhip64.so.5")
    given = prefix_reach.libraries(str(tmp_path / "five"))
    wheel, system = prefix_reach.place(Root("/"), str(made / "wheel")), prefix_reach.Place("system", {"libMIOpen.so": frozenset({"libMIOpen.so.1"})})
    with pytest.raises(RefusedError, match=r"libMIOpen\.so\.1 needs libamdhip64\.so\.5, and the torch in .* uses libamdhip64\.so\.6"):
        prefix_means.check(given, [wheel])
    assert len(prefix_means.check(given, [wheel, system])) == 1  # it is for somebody here, and said not to be for the other
    assert prefix_means.check(given, []) == ()


def test_a_plan_whose_torch_has_changed_since_writes_nothing(made, tmp_path):
    """What was seen when it was planned is looked at again before anything is written."""
    root, site = tmp_path / "root", tmp_path / "root/home/u/site"
    shutil.copytree(made / "wheel", site)
    stage = root / "home/u/stage"
    shutil.copytree(made / "patched/miopen", stage, symlinks=True)
    text = manifest_of(str(stage))
    (stage / "manifest").write_bytes(text)
    words = {"name": ("miopen",), "version": ("6.4.3",), "sha256": (hashlib.sha256(text).hexdigest(),), "source": ("/home/u/stage",)}
    given, where = Step("patched-prefix", "user", {**words, "torch": ("/home/u/site",)}), Locations(str(root), "/home/u")
    seen = outlook((given,), where)
    assert seen.also[0].startswith("the torch in /home/u/site has its own, held by DT_RPATH: /home/u/site/torch/lib/libMIOpen.so. ")
    stand.library(site / "torch/lib/libMIOpen.so", "miopen", "wheel", "-Wl,--unresolved-symbols=ignore-all", soname="libMIOpen.so.2")
    with pytest.raises(RefusedError, match=r"this is libMIOpen\.so\.1, and the torch in /home/u/site uses libMIOpen\.so\.2") as refusal:
        apply(Plan(SCHEMA, (given,), seen.facts), where, say=lambda _: None)
    assert refusal.value.exit_code == 5
    assert not (root / "home/u/.local").exists()


def test_the_systems_libraries_are_found_where_the_loader_looks(tmp_path):
    for path in (
        "opt/rocm-6.4.3/lib/libMIOpen.so.1",
        "usr/lib64/libamdhip64.so.6",
        "srv/x/libhsa-runtime64.so.1",
        "usr/lib64/libamdhip64.so.6.4.43484",
        "usr/lib64/librocblas.so.4.0",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    for gone in ("libMIOpen.so.2", "libamdhip64.so.5"):  # what an upgrade left: a link to nothing is nobody's library
        (tmp_path / "usr/lib/x86_64-linux-gnu" / gone).symlink_to(f"{gone}.0")
    (tmp_path / "usr/lib64/librocblas.so.4").symlink_to("librocblas.so.4.0")
    (tmp_path / "etc/ld.so.conf.d").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf.d/x.conf").write_text("# a remark\n/srv/x\n")
    there = prefix_reach.place(Root(str(tmp_path)), prefix_reach.SYSTEM)
    assert {name for names in there.uses.values() for name in names} == {
        "libMIOpen.so.1", "libamdhip64.so.6", "libhsa-runtime64.so.1", "librocblas.so.4",
    }  # fmt: skip
    (tmp_path / "empty").mkdir()
    assert prefix_reach.place(Root(str(tmp_path / "empty")), prefix_reach.SYSTEM) is None


# ------------------------------------------------------------------ what cannot be reached, and what cannot be read


def test_a_preload_that_cannot_be_written_is_said(made, tmp_path):
    shutil.copytree(made / "wheel", tmp_path / "my torch")
    found = with_prefix(Launch({}, (), ()), str(made / "patched/miopen"), [str(tmp_path / "my torch")])
    assert "LD_PRELOAD" not in found.environment
    assert "LD_PRELOAD cannot name" in found.warnings[0]
    assert f"ln -s {made}/patched/miopen/lib/libMIOpen.so.1 '{tmp_path}/my torch/torch/lib/libMIOpen.so'" in found.warnings[0]


def test_several_torches_that_keep_their_own_are_not_guessed_among(made):
    given = Launch({}, (), ())
    sites = [str(made / "wheel"), str(made / "sdk")]
    found = with_prefix(given, str(made / "patched/miopen"), sites)
    assert "LD_PRELOAD" not in found.environment
    assert "name the one that is meant with --python" in found.warnings[0]
    assert "LD_PRELOAD" in with_prefix(given, str(made / "patched/miopen"), sites[:1]).environment


def test_a_program_of_the_system_gets_no_file_of_a_wheel(made, tmp_path):
    """A wheel is known, and the command is not its Python: MIOpen is ours, and the HIP beside it the system's, not the wheel's."""
    numbered = stand.stubs(tmp_path / "stub", numbered=True)
    words = [
        "-x",
        "c",
        "-",
        "-x",
        "none",
        "-o",
        str(tmp_path / "program"),
        numbered["miopen"],
        numbered["hip"],
        "-Wl,--unresolved-symbols=ignore-all",
    ]
    source = """#include <stdio.h>
        const char *miopen_which(void); const char *hip_which(void); const char *miopen_hip(void);
        int main(void) { printf("%s %s %s", miopen_which(), hip_which(), miopen_hip()); }"""
    subprocess.run([os.environ.get("CC", "cc"), *words], input=source, text=True, check=True)
    given, folder = Launch({"HOME": str(tmp_path), "LD_LIBRARY_PATH": f"{made}/rocm/lib"}, (), ()), str(made / "patched/miopen")

    def says(launch):
        return subprocess.run([tmp_path / "program"], env=dict(launch.environment), capture_output=True, text=True, check=True).stdout

    assert says(given) == "system system system"
    assert says(with_prefix(given, folder, [str(made / "wheel")])) == "patched wheel wheel"  # why the wheel has to be named
    for site in ("wheel", "wheel-runpath"):
        found = with_prefix(given, folder, (), [str(made / site), prefix_reach.SYSTEM])
        assert says(found) == "patched system system"
        assert f"the torch in {made}/{site} does not take it so" in found.warnings[0]
        assert str(made / site) not in " ".join(found.environment.values())


def test_databases_of_its_own(made, tmp_path):
    """Named by the version, so that no other version's results are taken; what the user has set stays."""
    version = tmp_path / "prefixes/miopen-6.4.3-0123456789ab"
    shutil.copytree(made / "patched/miopen", version / "prefix", symlinks=True)
    (tmp_path / "prefixes/current").symlink_to(f"{version.name}/prefix")
    current = str(tmp_path / "prefixes/current")
    found = with_prefix(Launch({"HOME": "/home/u", "XDG_CACHE_HOME": "/c"}, (), ()), current).environment
    assert found["MIOPEN_USER_DB_PATH"] == f"/c/rocm-patch/miopen/{version.name}/db"
    assert found["MIOPEN_CUSTOM_CACHE_DIR"] == f"/c/rocm-patch/miopen/{version.name}/kernels"
    mine = with_prefix(Launch({"HOME": "/home/u", "MIOPEN_USER_DB_PATH": "/mine"}, (), ()), current)
    assert mine.environment["MIOPEN_USER_DB_PATH"] == "/mine"
    assert mine.environment["MIOPEN_CUSTOM_CACHE_DIR"] == f"/home/u/.cache/rocm-patch/miopen/{version.name}/kernels"
    assert "MIOPEN_USER_DB_PATH=/mine stays" in mine.warnings[0]
    assert "MIOPEN_USER_DB_PATH" not in with_prefix(Launch({}, (), ()), str(made / "patched/hip")).environment
    assert "MIOPEN_SYSTEM_DB_PATH=/x stays" in with_prefix(Launch({"MIOPEN_SYSTEM_DB_PATH": "/x"}, (), ()), current).warnings[0]


@pytest.mark.parametrize("mark", [":", ";", "$"])
def test_a_folder_that_the_library_path_cannot_name_is_refused(made, mark, tmp_path):
    """The loader would look in two other folders, or in none, and the program would take what it always takes."""
    shutil.copytree(made / "patched/miopen", tmp_path / f"a{mark}LIB", symlinks=True)
    with pytest.raises(UsageError, match=f"LD_LIBRARY_PATH cannot name a path with [{mark}]"):
        with_prefix(Launch({}, (), ()), str(tmp_path / f"a{mark}LIB"))
    (tmp_path / "link").symlink_to(f"a{mark}LIB")  # what the hint says
    assert "LD_LIBRARY_PATH" in with_prefix(Launch({}, (), ()), str(tmp_path / "link")).environment
    for site in ("wheel", "wheel-runpath"):
        shutil.copytree(made / site, tmp_path / f"{site}{mark}LIB")
        found = with_prefix(Launch({}, (), ()), str(made / "patched/miopen"), [str(tmp_path / f"{site}{mark}LIB")])
        assert f"{mark}LIB" not in found.environment["LD_LIBRARY_PATH"] + found.environment.get("LD_PRELOAD", "")
        assert "cannot name" in found.warnings[0]


def test_what_is_to_be_kept_is_kept(made):
    given, sites, folder = Launch({"LD_PRELOAD": "/mine.so"}, (), ()), [str(made / "wheel")], str(made / "patched/miopen")
    names = ("LD_PRELOAD", "MIOPEN_USER_DB_PATH", "MIOPEN_CUSTOM_CACHE_DIR")
    assert all(given.environment.get(name) != with_prefix(given, folder, sites).environment[name] for name in names)
    found = with_prefix(given, folder, sites, keep=names)
    assert found.environment == {"LD_PRELOAD": "/mine.so", "LD_LIBRARY_PATH": f"{folder}/lib"}
    assert [next(name for name in names if line.startswith(name)) for line in found.warnings] == list(names)
    with pytest.raises(UsageError, match="give one of the two|--keep LD_LIBRARY_PATH"):
        with_prefix(given, folder, sites, keep=("LD_LIBRARY_PATH",))


def test_no_two_folders_share_databases(made, tmp_path):
    """MIOpen takes a compiled kernel by its name: of two builds' staged folders, or of one that was staged again, the first one's."""

    def databases(folder):
        return prefix_users.databases("/c", str(folder))

    folders = [tmp_path / name for name in ("miopen-6.4.3-aaaa/staged", "miopen-6.4.3-bbbb/staged", "opt/rocm", "data/opt/rocm", "opt/prefix")]
    for folder in folders:
        shutil.copytree(made / "patched/miopen", folder, symlinks=True)
    assert len({databases(folder) for folder in folders}) == len(folders)
    (tmp_path / "link").symlink_to(folders[0])
    before = databases(folders[0])
    assert before == databases(tmp_path / "link")
    assert before.startswith("/c/rocm-patch/miopen/staged-")
    library = folders[0] / "lib/libMIOpen.so.1.0"
    library.write_bytes(library.read_bytes())  # the same size
    assert databases(folders[0]) != before


def test_every_file_that_is_cut_off_or_overwritten_reads_as_none_or_as_words(made, tmp_path):
    whole = (made / "wheel/torch/lib/libMIOpen.so").read_bytes()
    assert prefix_elf.read(str(made / "wheel/torch/lib/libMIOpen.so")) == prefix_elf.Dynamic(
        "libMIOpen.so.1", ("libamdhip64.so", "libc.so.6"), ("$ORIGIN",), ()
    )
    spoilt = tmp_path / "libx.so"
    for at in range(0, 2048, 7):
        spoilt.write_bytes(whole[:at])
        assert prefix_elf.read(str(spoilt)) is None or at > 64
        spoilt.write_bytes(whole[:at] + b"\xff" * 9 + whole[at + 9 :])
        found = prefix_elf.read(str(spoilt))
        assert found is None or isinstance(found.needed, tuple)
    os.mkfifo(tmp_path / "pipe")
    assert prefix_elf.read(str(tmp_path / "pipe")) is None
    assert prefix_elf.read(str(tmp_path)) is None
