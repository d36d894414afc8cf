"""Run an example in a fresh home, where it must leave no file, as the device id of onnxruntime's telemetry would be."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
# onnxruntime sends no telemetry where one of these is set; examples run as on a user's machine, which has none.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS",
                "JENKINS_URL", "CODEBUILD_BUILD_ID", "BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR"}  # fmt: skip
HOMES = {"HOME": "", "USERPROFILE": "", "XDG_CACHE_HOME": ".cache", "XDG_CONFIG_HOME": ".config",
         "XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state"}  # fmt: skip


def run_example(
    *arguments: str | Path, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python where the examples can be imported, without any setting that ends telemetry."""
    path = os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)])
    settings = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY}
    with tempfile.TemporaryDirectory() as home:
        settings |= {name: str(Path(home) / below) for name, below in HOMES.items()}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=folder,
            env=settings | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | environment,
        )  # fmt: skip
        left = [str(file.relative_to(home)) for file in Path(home).rglob("*") if not file.is_dir()]
    assert left == [], f"{arguments[0]} left files in the user's home: {left}"
    return done
