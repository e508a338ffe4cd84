"""The model card of a saved model: a short README for whoever finds the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = "README.md"
PARTS = {
    "block": "blocks",
    "attention": "the attention of blocks",
    "mlp": "the feed-forward part of blocks",
    "head": "heads of blocks",
    "channel": "channels of blocks",
    "expert": "experts of blocks",
}
READ = 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("<this folder>")'


def card(about: Mapping[str, Any]) -> str:
    """The card, from what `pruning.json` says."""
    lines = ["# A pruned language model", "", *_done(about), ""]
    if about.get("form") == "sliced" and about.get("cut"):
        lines += [
            "Its matrices have their true widths, which transformers cannot load; read it with the pruning harness:"
        ]
        lines += ["", "```", "python -m harness model=hf model.path=<this folder> method=none", "```"]
    else:
        lines += ["Load it as any other:", "", "```python", READ, "```"]
    if measures := about.get("measures"):
        lines += ["", "| task | metric | value |", "|---|---|---|"]
        lines += [f"| {one['task']} | {one['metric']} | {_number(one['value'])} |" for one in measures]
    return "\n".join([*lines, "", "`pruning.json` says what was done to every matrix.", ""])


def _done(about: Mapping[str, Any]) -> list[str]:
    """List of what was done."""
    told = {name: about[name] for name in ("model", "method", "allocator", "planner", "recovery") if about.get(name)}
    lines = [f"* {name}: {value['name'] if isinstance(value, Mapping) else value}" for name, value in told.items()]
    for part, gone in about.get("cut", {}).items():
        lines.append(f"* without {PARTS[part]} {', '.join(map(str, gone))} (numbered as in the dense model)")
    sites = about.get("sites", {}).values()
    if weights := sum(one["parameters"] for one in sites):
        zeros = sum(one["achieved"] * one["parameters"] for one in sites) / weights
        lines.append(f"* {100 * zeros:.1f} % zeros in {len(sites)} matrices with {weights:,} weights")
    return [*lines, f"* {about['parameters']:,} parameters in the files"]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
