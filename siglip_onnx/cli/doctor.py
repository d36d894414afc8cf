"""``siglip-onnx doctor``: a diagnosis of this installation."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..doctor import FAILURE, OK, examine
from ..errors import BundleError
from .help import OUTPUT, Command, section
from .output import print_json, show


@click.command(cls=Command, examples=("siglip-onnx doctor", "siglip-onnx doctor --json > report.json"))
@section(
    OUTPUT,
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document, to be pasted into a bug report."),
)
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Check that this installation works as it should.

    Examines versions, CPU, threads, providers, telemetry, installed files, the cache, and the answers of the demo
    model. Exit codes: 0 if there are no findings or only warnings, 4 if a check fails.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mark = "" if finding.state == OK else f"{finding.state.upper()}: "
            show(f"{finding.question:<12}{mark}{finding.answer}")
            if finding.advice:
                show(f"{'':<12}{finding.advice}")
    healthy = all(finding.state != FAILURE for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": {finding.question: asdict(finding) for finding in findings}})
    context.exit(0 if healthy else BundleError.exit_code)
