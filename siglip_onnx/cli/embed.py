"""``siglip-onnx embed``: vectors of pictures or texts as ``.npy`` with JSON lines that name the rows; or of folders."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import ImageError, SiglipOnnxError
from .jobs import JobChoice, check_no_job_options, embed_job, is_source, job_options
from .options import ModelChoice, exit_code, model_options, read_texts, tell_errors, text_options, to_json


@click.command()
@click.argument("images", nargs=-1, metavar="[IMAGE... | FOLDER | LIST.txt | -]")
@text_options
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH.npy|FOLDER",
    help="Where the vectors go, f32 (N, D), length 1; PATH.jsonl tells the rows. Jobs: a folder, to begin or to go on.",
)
@job_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON summary.")
@click.pass_context
def embed(
    context: click.Context,
    images: tuple[str, ...],
    texts: tuple[str, ...],
    texts_file: Path | None,
    out: Path,
    job: JobChoice,
    choice: ModelChoice,
    as_json: bool,
) -> None:
    """Write the embeddings of IMAGEs, or of texts, or of whole folders.

    The JSON lines name each input in order; "row" is its row in the .npy file, null where a picture could not be read.

    A FOLDER of any size, a LIST.txt (or @LIST) of one path per line, or - for a list on stdin, is a job: it can be
    stopped and run again, goes on where it was, and embeds what is new. docs/bulk.md says what it writes.
    """  # fmt: skip
    all_texts = read_texts(texts, texts_file)
    if bool(images) == bool(all_texts):
        raise click.UsageError("Give either pictures, or texts with --text or --texts-file.")
    if any(map(is_source, images)):
        if not all(map(is_source, images)):
            raise click.UsageError("Give either single pictures, or folders and lists, not both.")
        context.exit(embed_job(choice, job, images, out, as_json=as_json))
    check_no_job_options(context)
    context.exit(_embed_each(images, all_texts, out, choice, as_json=as_json))


def _embed_each(images: Sequence[str], all_texts: list[str], out: Path, choice: ModelChoice, *, as_json: bool) -> int:
    """Embed single pictures or texts into one file; return the exit code."""
    import numpy as np  # noqa: PLC0415 - keeps --help fast

    rows_path = _check_out(out)
    siglip = choice.open(num_inputs=len(images or all_texts))
    if images:
        results = tell_errors(siglip.stream_embeddings(images))
        good = [result.embedding for result in results if not isinstance(result, ImageError)]
        vectors = np.array(good, np.float32).reshape(len(good), siglip.embedding_dim)
        lines = _describe_rows(images, results)
        code = exit_code(results)
    else:
        vectors = siglip.encode_texts(all_texts)
        lines = [{"row": row, "text": text} for row, text in enumerate(all_texts)]
        code = 0
    for line in lines:
        line["embedding_space"] = siglip.embedding_space
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    _write({out: buffer.getvalue(), rows_path: "".join(to_json(line) + "\n" for line in lines).encode()})
    summary = {"vectors": str(out), "rows": str(rows_path), "shape": list(vectors.shape),
               "errors": len(lines) - len(vectors)}  # fmt: skip
    click.echo(to_json(summary, indent=2) if as_json else f"{out}: {len(vectors)} vectors of {vectors.shape[1]}")
    return code


def _check_out(out: Path) -> Path:
    """Return where the rows are told, after checking that both files can be written."""
    if out.suffix != ".npy":
        raise click.UsageError(f"--out is {str(out)!r}; give a file name that ends with .npy.")
    rows_path = out.with_suffix(".jsonl")
    for path in (out, rows_path):
        if path.is_dir():
            raise SiglipOnnxError(f"{path} is a folder; give the name of a file that ends with .npy.")
    if not out.parent.is_dir():
        raise SiglipOnnxError(f"{out.parent} is no folder; make it first, or choose another place for {out.name}.")
    return rows_path


def _write(files: dict[Path, bytes]) -> None:
    from ..system.files import write_together  # noqa: PLC0415 - keeps --help fast

    try:
        write_together(files)
    except OSError as error:
        raise SiglipOnnxError(f"{next(iter(files))} cannot be written: {error.strerror or error}.") from error


def _describe_rows(images: Sequence[str], results: Sequence[Any]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    row = 0
    for image, result in zip(images, results, strict=True):
        if isinstance(result, ImageError):
            lines.append({"row": None, "image": image, "error": str(result), "status": result.status})
        else:
            lines.append({"row": row, "image": image} | ({"truncated": True} if result.truncated else {}))
            row += 1
    return lines
