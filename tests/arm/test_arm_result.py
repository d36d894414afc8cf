"""The committed result of ``make test-arm``: three kinds of ARM64 CPUs, every row within its limit."""

import json
from pathlib import Path

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "arm.json"
INSTRUCTIONS = {"cortex-a72": (False, False), "neoverse-n1": (True, False), "max": (True, True)}  # dot product, i8mm


def test_every_arm_cpu_answers_as_the_host() -> None:
    document = json.loads(RESULT.read_text(encoding="utf-8"))
    limits, cpus = document["limits"], document["cpus"]
    assert {
        name: ("asimddp" in cpu["instructions"], "i8mm" in cpu["instructions"]) for name, cpu in cpus.items()
    } == INSTRUCTIONS
    for name, cpu in cpus.items():
        assert cpu["architecture"] == "aarch64"
        assert cpu["int8_kernels"] is not None
        assert cpu["rows"].keys() == document["host"]["rows"].keys()
        for row, value in cpu["rows"].items():
            model, variant, *_ = row.split()
            if model == "classifier":
                assert value <= limits["max_difference"], (name, row)
            else:
                assert value >= limits["min_cosine"][variant], (name, row)
