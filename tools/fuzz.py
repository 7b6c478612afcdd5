"""Fuzz one reader, guided by coverage: only FormatError may leave it, and no input may take it longer than two seconds.

    python tools/fuzz.py FORMAT [CORPUS_FOLDER] [-max_total_time=60] [-max_len=65536]

FORMAT is fatbin, standalone, kpack, tensile, aotriton, miopen, object (ELF code objects), judge (their instructions), log (what
`explain` reads) or batch (lines of its --batch). The options are libFuzzer's; needs `pip install atheris`. Seeds are small valid
files of the tests' own builders.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time

import atheris

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
with atheris.instrument_imports(include=["rocm_patch"]):
    from rocm_patch import explain, knowledge
    from rocm_patch.errors import FormatError
    from rocm_patch.images import aotriton, code_object, fatbin, kpack, miopen, standalone, tensile
    from rocm_patch.images.source import Bytes, Code
    from rocm_patch.isa import judge, judges, sites
    from rocm_patch.logs import facts, text

from images import build

READERS = {
    "fatbin": (fatbin, "lib/libx.so"),
    "standalone": (standalone, "x.hsaco"),
    "kpack": (kpack, "x.kpack"),
    "tensile": (tensile, "rocblas/library/TensileLibrary_gfx1030.co"),
    "aotriton": (aotriton, "aotriton.images/amd-gfx1030/x.aks2"),
    "miopen": (miopen, "miopen/db/gfx1030.kdb"),
}
LIMIT = 2.0
TABLES = knowledge.load()


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
    elif judges(code_object.target(source), "gfx1010"):
        judge(source, "gfx1010")
        list(sites(source, "gfx1010"))


def seeds(name: str) -> list[bytes]:
    """Valid files to begin with."""
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
    if name not in (*READERS, "object", "judge", "log", "batch"):
        sys.exit(__doc__)

    def once(data: bytes) -> None:
        begin = time.process_time()
        with contextlib.suppress(FormatError):
            read(name, data)
        spent = time.process_time() - begin
        if spent > LIMIT:
            raise RuntimeError(f"{spent:.1f} s for {len(data)} bytes")

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(name)):
            with open(os.path.join(folder, str(number)), "wb") as stream:
                stream.write(seed)
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
