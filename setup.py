"""What is in the wheel: the package, and within it the configuration and the reported numbers (`core/places.py`)."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["harness", "harness.*"]), "harness.conf", "harness.reported"],
    package_dir={"harness": "harness", "harness.conf": "conf", "harness.reported": "benchmarks/reported"},
    package_data={
        "harness.embedded": ["assets/**/*"],
        "harness.conf": ["**/*.yaml"],
        "harness.reported": ["**/*.csv", "*.md"],
    },
)
