"""Choices of presentation (`conf/report.yaml`): what stands as the baseline, and how values look in every figure."""

from __future__ import annotations

from typing import Any

import yaml

from harness.core.places import CONF

_CHOICES: dict[str, Any] = yaml.safe_load((CONF / "report.yaml").read_text("utf-8"))
BASELINE: dict[str, str] = _CHOICES["baseline"]
"""Axis → the value that the others are compared with."""
LOOKS: dict[str, list[str]] = _CHOICES["looks"]
"""Axis → the values whose colours and markers are the same in every figure, in their order."""
