"""The stages of a build, each behind its stamp: fetched, unpacked, patched, configured, built, staged, proven."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rocm_patch import codec, sources
from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.root import Root
from rocm_patch.sources import build_distribution, build_failures, fetch
from rocm_patch.sources import patch as patching
from rocm_patch.sources.build_checks import PATH, fill, numbers, placeholders
from rocm_patch.sources.build_plan import Plan
from rocm_patch.sources.build_recipe import Fix
from rocm_patch.sources.build_run import Progress, execute
from rocm_patch.sources.build_staged import MANIFEST, Proven, manifest_of, prove, whole
from rocm_patch.sources.build_work import digest, flush, remove
from rocm_patch.sources.tree import Sources

_EPOCH: Final = "1577836800"
"""The build's date of birth, for tools that write one into their output: the same for each, so that results can be compared."""


_SPOILS: Final = {
    "unpacked": ("patched", "configured", "built", "staged", "proven"),
    "patched": ("built", "staged", "proven"),
    "configured": ("built", "staged", "proven"),
    "built": ("staged", "proven"),
    "staged": ("proven",),
}


@dataclass(frozen=True)
class Result:
    """What there is now. `digest` is the SHA-256 of the manifest in `staged`; `reused` names the stages that were done before."""

    staged: str
    digest: str
    proven: tuple[Proven, ...]
    reused: tuple[str, ...]


class BuildError(RocmPatchError):
    """A stage failed. `reason` says what its log shows."""

    def __init__(self, stage: str, reason: build_failures.Reason, log: str) -> None:
        said = "".join(f"\n    {line.strip()}" for line in reason.lines)
        super().__init__(f"the stage '{stage}' failed. {reason.meaning}{said}\n  log: {log}", reason.remedy)
        self.stage, self.reason, self.log = stage, reason, log


class Stages:
    """The stages of one run, in the order in which they happen."""

    def __init__(self, plan: Plan, say: Callable[[str], None], progress: Callable[[Progress], None]) -> None:
        self.plan, self.say, self.progress = plan, say, progress
        self.work, self.recipe, self.request = plan.work, plan.recipe, plan.request
        self.reused = list[str]()

    def run(self) -> Result:
        """All of them."""
        os.makedirs(self.work.at("home"), mode=0o700, exist_ok=True)
        remove(self.work.at("tmp"))  # a kill may have left much there
        os.mkdir(self.work.at("tmp"), 0o700)
        fixes = [fix for fix in self.recipe.fix if self._wanted(fix)]
        origin = self.plan.origin
        fetched = self._stage("fetched", fetch.identity(origin, self.work, self.say), lambda: fetch.fetch(origin, self.work, self.say))
        unpacked = digest(fetched, [(fix.files, fix.find, fix.replace, fix.count) for fix in fixes])
        self._stage("unpacked", unpacked, lambda: self._unpack(fixes), self._is("source"))
        patched = digest(unpacked, [(patch.id, repr(patch.form)) for patch in self.plan.patches])
        files = self._stage("patched", patched, self._patch)
        configured = digest(unpacked, self._words(self.recipe.configure, files), self._environment(), self._versions())
        self._stage("configured", configured, lambda: self._configure(files), self._is("build"))
        built = digest(configured, patched, self._words(self.recipe.build, files))
        self._stage("built", built, lambda: self._commands("built", self.recipe.build, files))
        install = digest(built, self._words(self.recipe.install, files))
        mark = self._stage("staged", install, lambda: self._install(files), lambda mark: whole(self.work.at("staged"), str(mark)))
        seen = self._stage("proven", digest(mark, codec.encode(self.recipe.proof), self.request.gpu), self._prove)
        proven: tuple[Proven, ...] = codec.decode(tuple[Proven, ...], seen, "the stamp of the stage 'proven'")
        return Result(self.work.at("staged"), str(mark), proven, tuple(self.reused))

    def _stage(self, name: str, inputs: str, do: Callable[[], object], good: Callable[[object], bool] = lambda _: True) -> object:
        output, there = self.work.stage(name, inputs, do, good, _SPOILS.get(name, ()))
        if there:
            self.reused.append(name)
        return output

    def _is(self, name: str) -> Callable[[object], bool]:
        return lambda _: os.path.isdir(self.work.at(name))

    def _wanted(self, fix: Fix) -> bool:
        if not fix.tool:
            return True
        from packaging.specifiers import SpecifierSet

        found = self.plan.checks.tools.get(fix.tool)
        return found is not None and SpecifierSet(fix.versions).contains(found.version, prereleases=True)

    def _unpack(self, fixes: Sequence[Fix]) -> None:
        self.say("unpacking")
        fetch.place(self.plan.origin, self.work, lambda folder: _mend(folder, fixes))

    def _patch(self) -> list[str]:
        """The tree as it should be: wanted patches in, others of ours out. Returns the files that differ from upstream's."""
        tree, files = Sources(self.work.at("source")), list[str]()
        ours = [patch for patch in patching.load().values() if patch.component == self.recipe.component]
        # What another version of a patch wrote is no state that `apply` goes on from: it goes out as what nobody asked for does.
        good = {patch.id for patch in self.plan.patches if sources.examine(patch, tree).state != "refused"}
        sources.clear(tree, (pattern for patch in ours for pattern in patch.files), good)
        for patch in self.plan.patches:
            self.say(f"patching: {patch.id}")
            outlook = sources.apply(patch, tree)
            if outlook.state == "upstream":
                self.say(f"{patch.id}: {'; '.join(outlook.reasons)}")
            files += [change.file for change in outlook.changes]
        if not files and any("{objects}" in argv for argv in self.recipe.build):  # make without a target would build all of it
            names = ", ".join(patch.id for patch in self.plan.patches)
            raise RefusedError(
                f"{self.recipe.component} {self.plan.version} has {names} already, upstream's own: there is nothing to build",
                "the distribution's own build of this version will do",
            )
        return sorted(set(files))

    def _prove(self) -> object:
        self.say("looking through the result")
        return codec.encode(prove(self.work.at("staged"), self.recipe.proof, self.request.gpu, {}))

    def _configure(self, files: object) -> None:
        remove(self.work.at("build"))
        os.mkdir(self.work.at("build"), 0o700)
        self._commands("configured", self.recipe.configure, files)

    def _install(self, files: object) -> str:
        for name in ("destination", "staged"):
            remove(self.work.at(name))
        os.makedirs(self.work.at("destination") + self.request.prefix, mode=0o755)
        self._commands("staged", self.recipe.install, files)
        staged = self.work.at("destination") + self.request.prefix
        manifest = manifest_of(staged)
        with open(os.path.join(staged, MANIFEST), "wb") as file:
            file.write(manifest)
        flush(self.work.folder)
        os.rename(staged, self.work.at("staged"))
        remove(self.work.at("destination"))
        return hashlib.sha256(manifest).hexdigest()

    def _commands(self, stage: str, commands: Sequence[Sequence[str]], files: object) -> None:
        self.say(f"{stage}: begins")
        for number, argv in enumerate(self._filled(commands, files)):
            ended = execute(
                self.work,
                stage,
                argv,
                cwd=self.work.at("build"),
                environment=self._environment(),
                silence=self.recipe.silence * 60.0,
                say=self.progress,
                append=number > 0,
            )
            if ended.silent:
                words = f"Nothing was heard for {self.recipe.silence} minutes, and it was ended: it hung."
                raise BuildError(
                    stage, build_failures.Reason("hung", words, "The same command goes on from there; --jobs 1 if it hangs again.", ()), ended.log
                )
            if ended.code != 0:
                text = build_failures.tail(ended.log) + ("\nKilled\n" if ended.code == -9 else "")
                raise BuildError(stage, build_failures.explain(text, self._packages()), ended.log)

    def _packages(self) -> str:
        distribution = build_distribution.read(Root("/"))
        values = {**placeholders(self.plan.checks.tools), **numbers(self.plan.version)}
        rows = [*(tool.packages for tool in self.recipe.tool), *(library.packages for library in self.recipe.library)]
        return fill(distribution.install(rows), values)

    def _values(self) -> dict[str, str]:
        tree, base = self.work.at("source"), ""
        for marker in self.recipe.marker:
            if os.path.exists(os.path.join(tree, marker)):
                base = os.path.dirname(marker)
                break
        names = {"source": os.path.normpath(os.path.join(tree, base)), "tree": tree, "build": self.work.at("build"), "prefix": self.request.prefix}
        stage = self.work.at("destination")
        names |= {"destination": stage, "stage": stage + self.request.prefix, "gpu": self.request.gpu, "jobs": str(self.plan.checks.jobs)}
        cache = next((self.plan.checks.tools[name].path for name in ("ccache", "sccache") if name in self.plan.checks.tools), "")
        return {
            **placeholders(self.plan.checks.tools),
            **self.plan.checks.places,
            **names,
            **numbers(self.plan.version),
            "launcher": cache,
        }

    def _words(self, commands: Sequence[Sequence[str]], files: object) -> list[list[str]]:
        """Commands as a stamp knows them: the number of jobs changes with the free memory, and nothing in the result."""
        return self._filled(commands, files, jobs="")

    def _filled(self, commands: Sequence[Sequence[str]], files: object, **instead: str) -> list[list[str]]:
        """Commands with their placeholders filled; `{objects}` becomes a word for each patched file."""
        values = {**self._values(), **instead}
        names = [str(name) for name in files] if isinstance(files, list) else []
        objects = [re.sub(r"\.(c|cc|cpp)$", ".o", name) for name in names if name.endswith((".c", ".cc", ".cpp"))]
        return [[filled for word in argv for filled in (objects if word == "{objects}" else [fill(word, values)])] for argv in commands]

    def _environment(self) -> dict[str, str]:
        values = self._values()
        base = {
            "PATH": PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": self.work.at("home"),
            "TMPDIR": self.work.at("tmp"),  # /tmp may be full, small or in memory; this place was looked at
            "SOURCE_DATE_EPOCH": _EPOCH,
            "NINJA_STATUS": "[%f/%t] ",
            "CCACHE_DIR": os.path.join(os.path.dirname(self.work.folder), "ccache"),
            "SCCACHE_DIR": os.path.join(os.path.dirname(self.work.folder), "sccache"),
        }
        return {**base, **{name: filled for name, value in self.recipe.environment.items() if "{" not in (filled := fill(value, values))}}

    def _versions(self) -> list[object]:
        return [*sorted((found.path, found.version) for found in self.plan.checks.tools.values()), *self.plan.checks.marks]


def _mend(folder: str, fixes: Sequence[Fix]) -> None:
    """Make the replacements that this compiler needs. Raises RefusedError if there are not as many places as the recipe says."""
    tree = Sources(folder)
    for fix in fixes:
        old, new = fix.find.encode(), fix.replace.encode()
        found = {path: data for path in tree.find(fix.files) if old in (data := tree.read(path))}
        count = sum(data.count(old) for data in found.values())
        if count != fix.count:
            raise RefusedError(
                f"{fix.what}: {fix.count} places expected, {count} found in {', '.join(found) or 'no file'}", "this release needs a recipe of its own"
            )
        for path, data in found.items():
            tree.write(path, data, data.replace(old, new))
