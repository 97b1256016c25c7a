"""`make audit` tells what it checked, and fails where something is known to be vulnerable."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
SAFE = {"name": "safe", "version": "1", "vulns": []}
UNKNOWN = {"name": "unknown", "version": "1", "skip_reason": "not found"}
BROKEN = {"name": "broken", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([SAFE, UNKNOWN], 0, "1 of 2 pinned dependencies checked with pypi, 0 known to be vulnerable; unknown there"),
        ([SAFE, BROKEN], 1, "broken 1: CVE-1, mended in 2"),
        ([UNKNOWN], 0, "nothing was checked"),
        (None, 0, "nothing was checked"),
    ],
)
def test_what_was_checked_is_said(tmp_path, dependencies, code, said):
    answer = "no network" if dependencies is None else json.dumps({"dependencies": dependencies})
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho '{answer}'\n")
    uv.chmod(0o755)
    done = subprocess.run([sys.executable, AUDIT, uv, "constraints.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == code and said in done.stdout
