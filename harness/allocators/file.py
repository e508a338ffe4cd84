"""An allocation out of a file: a saved one, that of a record, or one written by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.catalogue import component
from harness.core.allocation import Allocation, Budget, mean_sparsity
from harness.core.interfaces import ModelView
from harness.core.pattern import PERMUTED, NofM, Pattern, Unstructured, read_n_of_m
from harness.core.proposals import sizes
from harness.runtime.errors import Refusal, UserError
from harness.runtime.files import at_home, is_there

TOLERANCE = 1e-3
"""How far the mean of a file may be from the sparsity that the run asks for."""
MOST_WEIGHTS = 2**62
"""No matrix has more."""


@component("allocator", "file")
@dataclass(frozen=True)
class File:
    """The patterns of the file `path` as they are: an `allocation.json`, a record, or `{site: 0.7 or "1of4"}`."""

    path: str = ""
    """The file, with `~` for the home folder."""

    needs_calibration = False

    def check(self) -> None:
        """Find a mistake in the file before anything runs.

        Raises:
            UserError: no file is named, or it cannot be read, or it is no allocation.
        """
        self._saved()

    def identity(self) -> dict[str, str]:
        """Its content's digest, in place of the path."""
        return {"path": self._saved().digest}

    def allocate(self, view: ModelView, budget: Budget) -> Allocation:
        saved = self._saved()
        weights = sizes(view)
        if why := saved.foreign(weights, view.weights_sha256):
            raise Refusal(f"allocator.path={self.path} {why}.")
        allocation = {site: saved.patterns[site] for site in weights}
        if why := _unlike(allocation, weights, budget):
            raise Refusal(f"allocator.path={self.path} {why}.")
        return allocation

    def _saved(self) -> Saved:
        if not self.path:
            raise UserError("allocator=file needs allocator.path=<file>, an allocation.json or a record.")
        return read_allocation(self.path)


@dataclass(frozen=True)
class Saved:
    """An allocation as a file keeps it, with the model and the sizes of its matrices where the file tells them."""

    patterns: Allocation
    sizes: Mapping[str, int] = field(default_factory=dict)
    model: str | None = None
    weights_sha256: str | None = None

    @property
    def digest(self) -> str:
        """Equal for equal patterns, whatever form the file has."""
        canonical = {site: [str(pattern), pattern.sparsity] for site, pattern in self.patterns.items()}
        return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()

    def plain(self) -> dict[str, Any]:
        """The content of an `allocation.json`."""
        weights = self.sizes or dict.fromkeys(self.patterns, 1)
        sites = {
            site: {"asked": pattern.sparsity, "pattern": str(pattern), "parameters": self.sizes.get(site)}
            for site, pattern in self.patterns.items()
        }
        mean = mean_sparsity(self.patterns, weights)
        return {"model": self.model, "weights_sha256": self.weights_sha256, "sparsity": mean, "sites": sites}

    def foreign(self, sizes: Mapping[str, int], weights_sha256: str | None) -> str:
        """Why it is not of a model whose matrices in scope have these `sizes`, or nothing."""
        maker = f" ({self.model})" if self.model else ""
        missing = [site for site in sizes if site not in self.patterns]
        if len(missing) == len(sizes):
            return f"names no matrix of this model or scope; it belongs to another model{maker}"
        if self.weights_sha256 and weights_sha256 and self.weights_sha256 != weights_sha256:
            return f"was made for other weights{maker}; this model needs an allocation of its own"
        if missing:
            return f"says nothing of {missing[0]} ({len(missing)} missing); narrow scope= to the blocks that it covers"
        for site, size in sizes.items():
            if self.sizes.get(site, size) != size:
                return f"has {self.sizes[site]} weights in {site}, not {size}; it belongs to another model{maker}"
        return ""


def read_allocation(path: str | Path) -> Saved:
    """The allocation in a file.

    Raises:
        UserError: the file cannot be read or is none.
    """
    try:
        file = at_home(path)
        is_there(file)  # or refused: a device has no end
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping) or not isinstance(content.get("config", {}), Mapping):
            raise ValueError("it is no object of sites")
        saved = _of_record(content) if "fingerprint" in content else _of_sites(content)
        _check(saved)
        return saved
    except OSError as error:
        raise UserError(f"the allocation {path} cannot be read: {error.strerror}.") from error
    except KeyError as error:
        raise UserError(f"{path} is no allocation: it lacks {error}.") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is no allocation: {error}.") from error


def _check(saved: Saved) -> None:
    """Check that a file, whoever wrote it, can be weighed and shown.

    Raises:
        ValueError, TypeError: it is no allocation.
    """
    for site, pattern in saved.patterns.items():
        if not 0 <= pattern.sparsity <= 1:
            raise ValueError(f"{pattern.sparsity} is no fraction of zeros of {site}")
    for site, size in saved.sizes.items():
        if not 0 < size <= MOST_WEIGHTS:
            raise ValueError(f"{size} is no number of weights of {site}")
    for text in (saved.model, saved.weights_sha256):
        if not isinstance(text, str | None):
            raise TypeError("its model or its hash is no text")
    json.dumps([saved.model, list(saved.patterns)], ensure_ascii=False).encode()  # there is text that no file can hold


def _of_record(content: Mapping[str, Any]) -> Saved:
    """A record's sites tell what was asked as a fraction, and as pattern what was achieved: n is told by M."""
    config, sites = content["config"], content["sites"]
    if config["method"]["name"] == "none":
        raise ValueError("it is the record of a dense model")
    if not sites:
        raise ValueError(f"it is the record of a run that was {content['status']}")
    _, of = read_n_of_m(config["sparsity"]) or (None, None)
    asked = {site: float(facts["asked"]) for site, facts in sites.items()}
    return Saved(
        {site: NofM(round((1 - zeros) * of), of) if of else Unstructured(zeros) for site, zeros in asked.items()},
        {site: int(facts["parameters"]) for site, facts in sites.items()},
        config["model"]["name"],
        content["provenance"].get("weights_sha256"),
    )


def _of_sites(content: Mapping[str, Any]) -> Saved:
    """An `allocation.json`, or a plain mapping of sites."""
    told: Mapping[str, Any] = content if "sites" in content else {"sites": content}
    patterns = {site: _pattern(entry) for site, entry in told["sites"].items()}
    if len({getattr(pattern, "of", None) for pattern in patterns.values()}) != 1:
        raise ValueError("it has to be of fractions alone or of patterns of one M" if patterns else "it has no sites")
    entries = {site: entry for site, entry in told["sites"].items() if isinstance(entry, Mapping)}
    sizes = {site: int(entry["parameters"]) for site, entry in entries.items() if entry.get("parameters") is not None}
    complete = len(sizes) == len(patterns)
    return Saved(patterns, sizes if complete else {}, told.get("model"), told.get("weights_sha256"))


def _pattern(entry: Any) -> Pattern:
    """`0.7`, `1of4` or an object with both; of one matrix everything may go (`1.0`, `0of4`)."""
    if isinstance(entry, Mapping):
        pattern = entry.get("pattern", "unstructured")
        return _pattern(entry["asked"] if pattern == "unstructured" else pattern)
    if found := read_n_of_m(str(entry).removesuffix(PERMUTED)):
        keep, of = found
        if 0 <= keep <= of and of > 0:
            return NofM(keep, of)
    elif not isinstance(entry, bool) and 0 <= float(entry) <= 1:
        return Unstructured(float(entry))
    raise ValueError(f"{entry} is neither a fraction of zeros nor a pattern such as 1of4")


def _unlike(allocation: Allocation, sizes: Mapping[str, int], budget: Budget) -> str:
    """Why an allocation is not what the run asks for, and which `sparsity=` would ask for it; or nothing."""
    mean, of = mean_sparsity(allocation, sizes), getattr(next(iter(allocation.values())), "of", None)
    if of == budget.of and abs(mean - budget.sparsity) <= TOLERANCE:
        return ""
    has, asks = (f"{zeros:.4f} in {_form(m)}" for zeros, m in ((mean, of), (budget.sparsity, budget.of)))
    return f"has a mean of {has}, the run asks for {asks}; {_advice(mean, of)}"


def _form(of: int | None) -> str:
    return f"patterns of {of}" if of else "fractions"


def _advice(mean: float, of: int | None) -> str:
    if of is None:
        return f"write sparsity={round(mean, 4):g}"
    keep = round((1 - mean) * of)
    exact = abs(1 - keep / of - mean) <= TOLERANCE
    return f"write sparsity={keep}of{of}" if exact else f"no sparsity=Nof{of} has that mean"
