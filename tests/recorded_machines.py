"""Where the recorded machines lie, and which there are."""

from __future__ import annotations

from pathlib import Path

MACHINES = Path(__file__).parent / "machines"
NAMES = sorted(path.name for path in MACHINES.iterdir() if (path / "recording.toml").exists())
