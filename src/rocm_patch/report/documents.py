"""The JSON documents: one a verb, alone on standard output, each with a schema number."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from rocm_patch import codec
from rocm_patch.diagnose.case import Case
from rocm_patch.model import SCHEMA, Diagnosis, Fact, Known, Receipt, Trials, Unknown
from rocm_patch.report.diffs import redacted
from rocm_patch.report.receipts import by_nature


def show(document: Any) -> None:
    """Print one document."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def doctor(case: Case, diagnosis: Diagnosis) -> dict[str, Any]:
    """The doctor's answer. Unknown facts are null, and `unknown` says why."""
    unknown: list[dict[str, str]] = []
    machine = case.machine

    def plain(fact: Fact[Any], name: str) -> Any:
        if isinstance(fact, Known):
            return codec.encode(fact.value)
        unknown.append({"what": name, "why": fact.unknown, "source": fact.source})
        return None

    gpus = []
    for index, gpu in enumerate(machine.gpus):
        at = f"gpus[{index}]"
        gpus.append(
            {
                "gfx": plain(gpu.gfx, f"{at}.gfx"),
                "pci": gpu.pci,
                "name": gpu.name,
                "vendor_id": gpu.vendor_id,
                "device_id": gpu.device_id,
                "integrated": gpu.integrated,
                "kfd_node": plain(gpu.kfd_node, f"{at}.kfd_node"),
                "driver": plain(gpu.driver, f"{at}.driver"),
                "render_node": plain(gpu.render_node, f"{at}.render_node"),
                "render_access": plain(gpu.render_access, f"{at}.render_access"),
                "memory_bytes": plain(gpu.memory_bytes, f"{at}.memory_bytes"),
                "atomics": {
                    "verdict": gpu.atomics.verdict,
                    "why": gpu.atomics.why,
                    "firmware": gpu.atomics.firmware.value if isinstance(gpu.atomics.firmware, Known) else None,
                    "firmware_needed": gpu.atomics.firmware_needed,
                },
            }
        )
    torches = []
    for index, torch in enumerate(machine.torches):
        at, coverage = f"torches[{index}]", case.coverage(torch)
        torches.append(
            {
                "label": torch.label,
                "interpreter": torch.interpreter,
                "site": torch.site,
                "version": plain(torch.version, f"{at}.version"),
                "build": plain(torch.build, f"{at}.build"),
                "toolkit": plain(torch.toolkit, f"{at}.toolkit"),
                "python": plain(torch.python, f"{at}.python"),
                "targets": sorted(coverage.targets) if coverage.targets is not None else None,
                "targets_how": coverage.how if torch in case.rocm_torches else "",
                "placeholders": list(torch.placeholders),
            }
        )
    platform = {
        name: plain(getattr(machine.platform, name), f"platform.{name}")
        for name in ("kernel", "distribution", "distribution_version", "boot_loader", "secure_boot", "container", "wsl", "kfd_present", "kfd_access")
    }
    return {
        "schema": SCHEMA,
        "gpus": gpus,
        "other_gpus": list(machine.other_gpus),
        "torches": torches,
        "rocm": [{"path": rocm.path, "version": plain(rocm.version, rocm.path)} for rocm in machine.rocms],
        "platform": platform,
        "settings": [codec.encode(setting) for setting in machine.settings if setting.origin != "loaded"],
        "findings": codec.encode(diagnosis.findings),
        "healthy": diagnosis.healthy,
        "features": codec.encode(diagnosis.features),
        "notes": list(diagnosis.notes),
        "unknown": unknown,
        "unread": [{"why": item.unknown, "source": item.source} for item in machine.unread if isinstance(item, Unknown)],
    }


def probe(trials: Trials) -> dict[str, Any]:
    """The results table."""
    return {"schema": SCHEMA, **codec.encode(trials)}


def receipts(items: tuple[Receipt, ...]) -> dict[str, Any]:
    """What was done, in lines by their nature. Of files that somebody changed since: where and how much, for a document is sent to others."""
    return {"schema": SCHEMA, "receipts": [_receipt(item) for item in items]}


def _receipt(item: Receipt) -> dict[str, Any]:
    said = by_nature(item.verified)
    kept = replace(item, verified=said.verified, differences=tuple(map(redacted, item.differences)))
    return {**codec.encode(kept), "notes": list(said.notes), "to_do": list(said.to_do)}
