"""Write the `<name>.expect.json` of recorded machines: `python tests/machines/expect.py [NAME...]`; read the diff before you commit it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rocm_patch.cli.common import case_of, diagnosis_of
from rocm_patch.report import documents

HERE = Path(__file__).parent

for folder in sorted(path.parent for path in HERE.glob("*/recording.toml")):
    if not sys.argv[1:] or folder.name in sys.argv[1:]:
        case = case_of(str(folder))
        text = json.dumps(documents.doctor(case, diagnosis_of(case)), indent=2, ensure_ascii=False) + "\n"
        (HERE / f"{folder.name}.expect.json").write_text(text)
