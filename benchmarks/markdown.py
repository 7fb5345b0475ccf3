"""What pages of figures have in common: tables, and which machine it was."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

NONE = "—"
"""Where there is no figure."""


def machine() -> str:
    """Return what the processor is called, how many cores, and the system."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, columns of numbers to the right."""
    right = [
        any(c.isdigit() for c in column[0][:1]) or column[0] == NONE
        for column in zip(*rows, strict=True)
    ]
    rule = ["--:" if number else "---" for number in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
