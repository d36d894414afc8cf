"""``siglip-onnx doctor``: whether this machine runs the models as it should."""

from __future__ import annotations

from dataclasses import asdict

import click

from .options import to_json

FAILED = 4


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, to be pasted into a report.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Examine the CPU, threads, providers, telemetry, the installed files, the cache, and the demo model's answers.

    Exit codes: 0 if all is well or can be lived with, 4 if something fails.
    """
    from ..doctor import FAILURE, examine  # noqa: PLC0415 - keeps --help fast

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            mark = "" if finding.state == "ok" else f"{finding.state.upper()}: "
            click.echo(f"{finding.question:<12}{mark}{finding.answer}")
            if finding.advice:
                click.echo(f"{'':<12}{finding.advice}")
    healthy = all(finding.state != FAILURE for finding in findings)
    if as_json:
        document = {"healthy": healthy, "findings": {finding.question: asdict(finding) for finding in findings}}
        click.echo(to_json(document, indent=2))
    context.exit(0 if healthy else FAILED)
