"""From a request to a staged, proven library. One function for each arrow, a stamp for each stage.

    Request ─plan─> Plan ─run─> Result
                     │    fetched ─> unpacked ─> patched ─> configured ─> built ─> staged ─> proven
                     └ recipe, origin, patches, checks: all that can be said before anything is fetched

A stage is skipped if its inputs have the digest that its stamp notes. Whatever ends a build, the next one goes on from the last
stamp; ninja and make go on within their own stage. Nothing outside of the build's folder is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from rocm_patch.errors import RefusedError, RocmPatchError
from rocm_patch.sources import build_failures
from rocm_patch.sources.build_checks import ELSEWHERE
from rocm_patch.sources.build_plan import Plan, Request, plan
from rocm_patch.sources.build_run import Progress
from rocm_patch.sources.build_stages import BuildError, Result, Stages

__all__ = ["BuildError", "Plan", "Progress", "Request", "Result", "plan", "run"]


def run(plan: Plan, say: Callable[[str], None] = lambda _: None, progress: Callable[[Progress], None] = lambda _: None) -> Result:
    """Build.

    Raises:
        RefusedError: something is missing, a digest or an edit does not match, the result is not what it should be.
        BuildError: a command failed; says why.
    """
    if plan.checks.misses:
        raise RefusedError("; ".join(miss.what for miss in plan.checks.misses), "; ".join(dict.fromkeys(miss.remedy for miss in plan.checks.misses)))
    try:
        os.makedirs(plan.work.folder, mode=0o700, exist_ok=True)
        with plan.work.locked():
            return Stages(plan, say, progress).run()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = build_failures.explain("No space left on device", "")
            raise RocmPatchError(f"{error.filename or plan.work.folder}: {reason.meaning}", reason.remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            path = os.fsdecode(error.filename or plan.work.folder)
            if os.path.commonpath((path, plan.work.folder)) == plan.work.folder:
                raise RefusedError(
                    f"{path} cannot be written: {error.strerror}", f"make it yours again, remove {plan.work.folder}, or: {ELSEWHERE}"
                ) from error
            hint = "give this user the right to it; or --source, for other sources"
            raise RefusedError(f"{path} cannot be read by this user: {error.strerror}", hint) from error
        raise
