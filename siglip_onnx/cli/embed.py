"""``siglip-onnx embed``: vectors of images or texts as ``.npy``, with JSON lines that describe the rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..errors import ImageError, SiglipOnnxError
from ..system.files import write_together
from ..system.json_files import to_json
from .help import Command
from .inputs import InputReader, find_missing, isolate_many, list_images, read_texts
from .jobs import JobChoice, check_no_job_options, embed_job, is_source, job_options
from .options import DECODING_OPTIONS, NAME, PATH, ModelChoice, json_option, model_options, refuse_given, text_options
from .output import describe_error, exit_code, format_count, print_json, show, warn, writing
from .outputs import Kind, check_output

_VECTORS = Kind("vectors that siglip-onnx embed wrote", b"\x93NUMPY")
ROWS = Kind("rows that siglip-onnx embed wrote", rb'\{"row": [^\n]*"embedding_space": ')


@click.command(
    cls=Command,
    examples=(
        "siglip-onnx embed photos --out vectors",
        'siglip-onnx embed --text "a cat" --text "a dog" --out texts.npy',
    ),
)
@click.argument("images", type=NAME, nargs=-1, metavar="[IMAGE...|FOLDER|@LIST|-]")
@text_options
@click.option(
    "--out",
    "-o",
    type=PATH,
    required=True,
    metavar="PATH.npy|FOLDER",
    help="File for the vectors, f32 (N, D) of length 1; PATH.jsonl describes the rows. Jobs: the folder to start or to "
    "resume.",
)
@job_options
@model_options
@json_option
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
    """Write the embeddings of images, texts, or whole folders.

    The JSON lines describe the inputs in order; "row" is the row in the .npy file, null for an image that cannot be
    read.

    IMAGE is a file, a pattern such as "photos/*.jpg", or a URL.

    A FOLDER of any size, a LIST.txt (or @LIST) with one path per line, or - for a list on stdin, is a job: it can be
    stopped at any time. Run the same command again to resume it, or to embed what is new. docs/bulk.md describes the
    files that it writes.
    """
    all_texts = read_texts(texts, texts_file)
    if bool(images) == bool(all_texts):
        raise click.UsageError("Give either images, or texts with --text or --texts-file.")
    if any(map(is_source, images)):
        _check_sources(images)
        context.exit(embed_job(choice, job, images, out, as_json=as_json))
    names = list_images(images)
    if missing := find_missing(names):
        raise missing[0]
    check_no_job_options(context)
    if not images:
        refuse_given(DECODING_OPTIONS, "There are no images to decode")
    rows_path = _check_out(out)
    for path, kind in ((out, _VECTORS), (rows_path, ROWS)):
        check_output(path, kind, [*names, texts_file, choice.model], overwrite=job.overwrite)
    if out.is_file() and not rows_path.is_file() and not job.overwrite:
        raise SiglipOnnxError(
            f"{out} exists already, without {rows_path.name}, so it is not replaced; choose another name for --out, or "
            "replace it: --overwrite"
        )
    choice = isolate_many(choice, images)
    context.exit(_embed_each(names, all_texts, out, rows_path, choice, overwrite=job.overwrite, as_json=as_json))


def _check_sources(arguments: Sequence[str]) -> None:
    """Check that all arguments are folders or lists."""
    for argument in arguments:
        if is_source(argument):
            continue
        if missing := find_missing([argument]):
            raise missing[0]
        raise click.UsageError("Give either single images, or folders and lists, not both.")


def _embed_each(
    names: Sequence[str],
    texts: list[str],
    out: Path,
    rows_path: Path,
    choice: ModelChoice,
    *,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Embed single images or texts into one file; return the exit code."""
    model = choice.open(num_inputs=len(names or texts))
    if names:
        results = []
        for _, result in InputReader(choice.image_limits, choice.offline).embed(names, model.stream_embeddings):
            if isinstance(result, ImageError):
                warn(result)
            results.append(result)
        embeddings = [result.embedding for result in results if not isinstance(result, ImageError)]
        vectors = np.array(embeddings, np.float32).reshape(len(embeddings), model.embedding_dim)
        rows = _describe_rows(names, results)
        code = exit_code(results)
    else:
        vectors = model.encode_texts(texts)
        rows = [{"row": row, "text": text} for row, text in enumerate(texts)]
        code = 0
    space = {"embedding_space": model.embedding_space}
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    lines = "".join(to_json(row | space) + "\n" for row in rows)
    for path, kind in ((out, _VECTORS), (rows_path, ROWS)):
        check_output(path, kind, [], overwrite=overwrite)  # it may have appeared meanwhile
    with writing(out):
        write_together({out: buffer.getvalue(), rows_path: lines.encode()})
    if as_json:
        errors = len(rows) - len(vectors)
        print_json({"vectors": str(out), "rows": str(rows_path), "shape": list(vectors.shape), "errors": errors})
    else:
        show(f"{out}: {format_count(len(vectors), 'vector')} of {vectors.shape[1]}")
    return code


def _check_out(out: Path) -> Path:
    """Return the path of the JSON lines, after checking that both files can be written."""
    if out.suffix != ".npy":
        raise click.UsageError(f"--out is {str(out)!r}; give a file name that ends with .npy.")
    rows_path = out.with_suffix(".jsonl")
    for path in (out, rows_path):
        if path.is_dir():
            raise SiglipOnnxError(f"{path} is a folder; give the name of a file that ends with .npy.")
    return rows_path


def _describe_rows(images: Sequence[str], results: Sequence[Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    row = 0
    for image, result in zip(images, results, strict=True):
        if isinstance(result, ImageError):
            rows.append({"row": None} | describe_error(image, result))
        else:
            rows.append({"row": row, "image": image} | ({"truncated": True} if result.truncated else {}))
            row += 1
    return rows
