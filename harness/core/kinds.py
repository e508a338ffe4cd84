"""The kinds of components, and the package that holds those of each; read without importing any."""

KINDS = {
    "method": "harness.methods",
    "allocator": "harness.allocators",
    "planner": "harness.planners",
    "conversion": "harness.conversions",
    "recovery": "harness.recovery",
    "evaluator": "harness.evaluation",
}
"""Kind → package."""
DENSE = ("method", "none")
"""The choice without a class: the model as it is."""
