"""Fuzz one reader, guided by coverage: only our own errors may leave it, and no input may take it longer than two seconds.

    python tools/fuzz.py FORMAT [CORPUS_FOLDER] [-max_total_time=60] [-max_len=65536]

FORMAT is fatbin, standalone, kpack, tensile, aotriton, miopen, object (ELF code objects), judge (their instructions), log (what
`explain` reads), batch (lines of its --batch), plan (what root is handed: no path and no word outside the tables may come of it) or
journal (records: no path outside the root). The options are libFuzzer's; needs `pip install atheris`. Seeds are small valid
files of the tests' own builders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import time

import atheris

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
sys.path.insert(0, os.path.join(sys.path[0], "changes"))
with atheris.instrument_imports(include=["rocm_patch"]):
    from rocm_patch import apply, changes, codec, explain, knowledge
    from rocm_patch.changes.record import Record
    from rocm_patch.errors import FormatError, RocmPatchError
    from rocm_patch.images import aotriton, code_object, fatbin, kpack, miopen, standalone, tensile
    from rocm_patch.images.source import Bytes, Code
    from rocm_patch.isa import judge, judges, sites
    from rocm_patch.logs import facts, text
    from rocm_patch.model import Plan, Step

from changes_support import prepare

from images import build

READERS = {
    "fatbin": (fatbin, "lib/libx.so"),
    "standalone": (standalone, "x.hsaco"),
    "kpack": (kpack, "x.kpack"),
    "tensile": (tensile, "rocblas/library/TensileLibrary_gfx1030.co"),
    "aotriton": (aotriton, "aotriton.images/amd-gfx1030/x.aks2"),
    "miopen": (miopen, "miopen/db/gfx1030.kdb"),
}
CHANGES = ("plan", "journal")
MANAGED = re.compile(
    r"/etc/(profile\.d|environment\.d|systemd|modprobe\.d|default|grub\.d|kernel|udev/rules\.d|initramfs-tools|dracut\.conf\.d)/[\w./@-]*rocm-patch[\w./@-]*"
    r"|/etc/(ld\.so\.preload|group|gshadow)|/home/u/[\w./@-]*(rocm-patch|rocm_patch)[\w./@-]*|/usr/local/lib/rocm-patch[\w./-]*|/opt/rocm-patch[\w./-]*"
    r"|/boot/(grub2?/)?[\w.-]+|/boot/loader/[\w./-]+|/var/lib/[\w./-]*rocm-patch[\w./-]*"
)
"""All that a plan may ever manage; what is not here is a finding."""
LIMIT = 2.0
TABLES = knowledge.load()
ROWS = [row for row in TABLES.remedies.values() if any(kind.name == row.kind for kind in changes.KINDS)]
WORDS = ("1", "0", "direct", "trial", "HSA_OVERRIDE_GFX_VERSION=10.3.0", "MIOPEN_FIND_MODE=FAST", "10.1.0", "/srv/stage", "engine", "a", "a" * 64)
places = {"root": "/nonexistent-root"}
"""Where plans are looked at: a small tree that the run makes."""


def read(name: str, data: bytes) -> None:
    """What a scan does with such a file."""
    source = Bytes(data)
    if name in READERS:
        module, path = READERS[name]
        for item in module.read(source, path):
            if isinstance(item, Code):
                item.data.read(0, min(item.data.size, 64))
                code_object.count(item.data)
    elif name == "object":
        code_object.read(source)
    elif name == "log":
        explain.explain(text.decode(data), facts.Told(), TABLES)
    elif name == "batch":
        for answer in explain.batch(data.split(b"\n"), TABLES):
            # A surprise is caught there, so that the others have their answers: here it counts.
            if "defect" in answer.get("error", {}).get("what", ""):
                raise RuntimeError(answer["error"]["what"])
    elif name == "plan":
        check_plan(data)
    elif name == "journal":
        record = codec.loads(Record, data, "the journal")
        ground = changes.Locations("/nonexistent-root").ground("system")
        for entry in record.entries:
            at = ground.at(entry.path)
            if ".." in at.split("/") or ground.on_machine(at) != entry.path:
                raise RuntimeError(f"a journal may name {entry.path!r}")
    elif judges(code_object.target(source), "gfx1010"):
        judge(source, "gfx1010")
        list(sites(source, "gfx1010"))


def check_plan(data: bytes) -> None:
    """What root's side does with a document before it writes: only paths of ours may come of it."""
    plan = codec.loads(Plan, data, "the plan") if data[:1] == b"{" else built_plan(atheris.FuzzedDataProvider(data))
    if codec.loads(Plan, codec.dumps(plan), "the plan") != plan:
        raise RuntimeError("a plan is another one once it is written and read again")
    where = changes.Locations(places["root"], "/home/u")
    apply._check_plan(plan, where, TABLES, changes.KINDS)
    for path, _, after in changes.preview(plan.steps, where, TABLES):
        if not MANAGED.fullmatch(path):
            raise RuntimeError(f"a plan may manage {path!r}")
        if after.kind == "file" and after.mode & 0o022:
            raise RuntimeError(f"{path} would be writable by others")


def built_plan(given: atheris.FuzzedDataProvider) -> Plan:
    """A plan of the right form: ids and keys of the tables, values that somebody made up or that are nearly right."""
    steps = []
    for _ in range(given.ConsumeIntInRange(1, 3)):
        row = ROWS[given.ConsumeIntInRange(0, len(ROWS) - 1)]
        parameters = {}
        for key in row.parameters:
            count = given.ConsumeIntInRange(0, 2)
            parameters[key] = tuple(
                WORDS[given.ConsumeIntInRange(0, len(WORDS) - 1)] if given.ConsumeBool() else given.ConsumeUnicodeNoSurrogates(24)
                for _ in range(count)
            )
        steps.append(Step(row.id, "user" if given.ConsumeBool() else "system", {key: values for key, values in parameters.items() if values}))
    return Plan(1, tuple(steps), {})


def plan_seeds() -> list[bytes]:
    """A step of every remedy that a plan may hold, with every parameter."""
    found = []
    for row in ROWS:
        for scope in ("user", "system"):
            for number, _ in enumerate(WORDS):
                parameters = {key: (WORDS[(number + place) % len(WORDS)],) for place, key in enumerate(row.parameters)}
                found.append(codec.dumps(Plan(1, (Step(row.id, scope, parameters),), {"system:etc/x": "0" * 64})).encode())
    return found


def seeds(name: str) -> list[bytes]:
    """Valid files to begin with."""
    if name == "plan":
        return plan_seeds()
    if name == "journal":
        with open(os.path.join(sys.path[0], "journals", "0.1.0.json"), encoding="utf-8") as stream:
            stored = json.load(stream)["after"]
        return [row["text"].encode() for path, row in stored.items() if path.endswith("/receipt")]
    if name in ("log", "batch"):
        lines = [row.sample for row in TABLES.signatures]
        asked = [json.dumps({"id": 1, "log": line, "given": {"gfx": "gfx1010", "torch": "2.5.1+rocm6.2", "env.A": "1"}}) for line in lines]
        return [line.encode() for line in (lines if name == "log" else asked)]
    code = bytes.fromhex("0001 00f4 0000 00fa 7fc0 8cbf 0100 a0bf 0000 d8d8 0100 0000 0100 84bf 0080 30dc 0100 7d00 0000 81bf".replace(" ", ""))
    objects = [build.elf_object(target, ["a", "b"], code * 2) for target in ("gfx1010", "gfx1030", "gfx90a:xnack-")]
    bundle = build.plain_bundle({"gfx1010": objects[0], "gfx1030": objects[1]})
    packed = [build.compressed_bundle({"gfx1030": objects[1]}, version, method) for version in (1, 2, 3) for method in ("zstd", "zlib")]
    by_name = {
        "fatbin": [build.library(bundle), *(build.library(each) for each in packed)],
        "standalone": [*objects, bundle, *packed],
        "tensile": [*objects, bundle, *packed],
        "object": objects,
        "judge": objects,
    }
    if name == "kpack":
        from images.test_kpack import VALID

        return list(VALID)
    if name == "aotriton":
        from images.test_aotriton import aks2

        return [aks2([("a", objects[1]), ("b", objects[0])])]
    if name == "miopen":
        from images.test_miopen import BASE

        return [bytes(BASE)]
    return by_name[name]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in (*READERS, "object", "judge", "log", "batch", *CHANGES):
        sys.exit(__doc__)

    def once(data: bytes) -> None:
        begin = time.process_time()
        with contextlib.suppress(RocmPatchError if name in CHANGES else FormatError):
            read(name, data)
        spent = time.process_time() - begin
        if spent > LIMIT:
            raise RuntimeError(f"{spent:.1f} s for {len(data)} bytes")

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tree:
        if name == "plan":
            places["root"] = prepare(f"{tree}/root")
        for number, seed in enumerate(seeds(name)):
            with open(os.path.join(folder, str(number)), "wb") as stream:
                stream.write(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
