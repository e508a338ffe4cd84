"""The conversion that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.catalogue import component
from harness.core.recoveries import ConversionView


@component("conversion", "none")
@dataclass(frozen=True)
class NoConversion:
    """The model stays of its class."""

    def convert(self, decoder: Any, view: ConversionView) -> Any:
        return decoder
