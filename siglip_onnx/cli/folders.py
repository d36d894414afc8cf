"""Folders to search: one that ``embed`` wrote, or one of images, whose vectors are kept in the cache."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from .. import demo
from ..bulk.gallery import MARK
from ..bulk.index import is_job, newest_index, update_index
from ..bulk.job import ERRORS, open_job
from ..bulk.listing import Listing
from ..bulk.progress import Changes
from ..bulk.records import JobFacts
from ..bulk.run import LocalEngine, read_errors
from ..bulk.search import Collection, open_collection
from ..errors import DownloadError, ModelNotFoundError, SiglipOnnxError
from ..hub.download import is_offline
from ..model import SigLIP
from .inputs import report_left_out
from .jobs import choose_limits, count_workers, make_spec
from .options import PATH, ModelChoice
from .output import SOME_FAILED, format_count, report, report_demo_model, warn
from .outputs import Kind
from .progress import ProgressLine

PAGE = Kind("a page of siglip-onnx", rb"<!doctype html>\s*<html[^>]*>\s*<meta[^>]*>\s*" + re.escape(MARK).encode())
index_option = click.option(
    "--index", type=PATH, metavar="DIR", help="Folder for the vectors of a folder of images. Default: one in the cache."
)


@dataclass(frozen=True)
class OpenFolder:
    """Vectors to search.

    ``choice`` is the model that made them, ``given`` what the user chose. ``is_index`` is set for a folder of images,
    whose missing files still have vectors. ``num_errors`` counts its images that cannot be read.
    """

    collection: Collection
    choice: ModelChoice
    given: ModelChoice
    is_index: bool
    num_errors: int = 0

    @property
    def exit_code(self) -> int:
        """The exit code of a command that succeeded for all other images."""
        return SOME_FAILED if self.num_errors else 0

    def open_model(self) -> SigLIP:
        """Open the model that made the vectors.

        Raises:
            ModelNotFoundError: it is not where it was, and the user named none.
            DownloadError: it is not in the cache.
            JobError: the model has another embedding space.
        """
        facts = self.collection.job.facts
        choice = replace(self.choice, variant=self.choice.variant or facts.variant)  # not one of bench --choose
        try:
            with _named_by(self.collection.job.path, self.choice, self.given):
                model = choice.open(num_inputs=1)
        except (ModelNotFoundError, DownloadError) as error:
            if self.given.model not in (None, choice.model):  # of the environment
                model = replace(choice, model=self.given.model, offline=self.given.offline).open(num_inputs=1)
            elif isinstance(error, DownloadError):
                raise
            else:
                raise ModelNotFoundError(
                    f"{self.collection.job.path} was embedded with {facts.model_name}, variant {facts.variant}, which "
                    f"is not found as {str(self.choice.model)!r}; give its folder or name with --model."
                ) from error
        self.collection.check_model(model)
        if not self.is_index and self.choice.model == demo.NAME and self.given.model is None:
            report_demo_model()
        return model


def open_folder(context: click.Context, folder: Path, index: Path | None, given: ModelChoice) -> OpenFolder:
    """Open a folder that ``embed`` wrote, or bring the vectors of a folder of images up to date and open them.

    The model is the one that was named on the command line, or else the one that made the vectors.

    Raises:
        SiglipOnnxError: the folder does not exist, has neither images nor vectors, or cannot be indexed.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise SiglipOnnxError(f"{folder} {problem}; give a folder of images, or one that siglip-onnx embed wrote.")
    is_index = not is_job(folder)
    if index is not None and not is_index:
        raise click.UsageError(f"{folder} holds vectors; --index is for a folder of images.")
    vectors = _find_index(folder, index, given) if is_index else folder
    is_named = context.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    choice = given
    follows = vectors is not None and not (is_index and is_named)
    if vectors is not None and follows:
        choice = choose_model(open_job(vectors).facts, given, is_named=is_named)
    choice = replace(choice, model=choice.model or demo.NAME)
    num_errors = 0
    if is_index:
        if choice.model == demo.NAME and given.model is None:
            report_demo_model()
        with _named_by(vectors or folder, choice, given):
            if (earlier := vectors if follows else _find_index_of(choice, folder, index)) is not None:
                facts = open_job(earlier).facts
                choice = choose_limits(facts, choose_decoding(facts, choice))
            vectors, num_errors = _update(folder, index, choice)
    return OpenFolder(open_collection(vectors or folder), choice, given, is_index, num_errors)


def warn_about_tiles(page: Path, count: int, most: int) -> None:
    """Say if a page shows only the first ``most`` of its images."""
    if count > most:
        warn(f"{page} shows the first {most:,} of {count:,} images; the table and --json have all.")


def choose_model(facts: JobFacts, given: ModelChoice, *, is_named: bool = False) -> ModelChoice:
    """Return the choice of the model that made vectors, for what the user left open.

    ``is_named`` says that the user named it. A name that only the folder gives, which may come from elsewhere, is
    not downloaded.
    """
    model = given.model if is_named else facts.name_model()
    return replace(
        choose_decoding(facts, given),
        model=model,
        offline=given.offline or given.model != model,
        variant=given.variant or facts.variant,
        max_num_patches=given.max_num_patches or facts.max_num_patches,
    )


def choose_decoding(facts: JobFacts, given: ModelChoice) -> ModelChoice:
    """Return a choice with the pixels of the images that made vectors, for what the user left open."""
    background = given.background or facts.background
    return replace(given, background=background, fast_decode=given.fast_decode or facts.fast_decode)


@contextlib.contextmanager
def _named_by(vectors: Path, choice: ModelChoice, given: ModelChoice) -> Iterator[None]:
    """Say why a model is not downloaded that the user did not name, but a folder of vectors."""
    try:
        yield
    except DownloadError as error:
        if not choice.offline or given.offline or is_offline():
            raise
        raise DownloadError(
            f"{vectors} was embedded with {choice.model}, which is not in the cache. It is not downloaded, because "
            f"only that folder names it. If you trust the name, run: siglip-onnx models pull {choice.model}"
        ) from error


def _find_index(folder: Path, index: Path | None, given: ModelChoice) -> Path | None:
    """Return an earlier index whose model is to be used; one in the cache only if the environment names no model."""
    if index is None and given.model is None:
        return newest_index(folder)
    return index if index is not None and is_job(index) else None


def _find_index_of(choice: ModelChoice, folder: Path, index: Path | None) -> Path | None:
    """Return an earlier index by the model of a choice, the given one or the newest in the cache; None without one.

    Raises:
        SiglipOnnxError: the model cannot be opened.
    """
    if not is_job(index) if index is not None else newest_index(folder) is None:
        return None  # without opening the model
    space = make_spec(choice).job_facts().embedding_space
    if index is None:
        return newest_index(folder, lambda facts: facts.embedding_space == space)
    return index if open_job(index).facts.embedding_space == space else None


def _update(folder: Path, index: Path | None, choice: ModelChoice) -> tuple[Path, int]:
    """Bring the vectors of a folder of images up to date; return their folder and the number of unreadable images."""
    progress, listing = _IndexProgress(folder), Listing([folder])
    engine = LocalEngine(count_workers(choice))
    try:
        path, summary = update_index(
            folder, make_spec(choice), index, listing=listing, engine=engine, progress=progress
        )
    finally:
        progress.clear()
    if progress.num_new:
        report_left_out(listing, folder)
    errors = read_errors(path) if summary["errors"] else ()
    num_errors = sum(os.path.lexists(error["path"]) for error in errors)  # those of removed files are kept
    if num_errors:
        warn(f"{format_count(num_errors, 'image')} cannot be read; see {path / ERRORS}.")
    return path, num_errors


class _IndexProgress(ProgressLine):
    """Says what is embedded, if anything is."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.num_new = 0

    def planned(self, changes: Changes, num_inputs: int, done: Mapping[str, int]) -> None:
        """Start, and name the folder."""
        self.start(num_inputs, done)
        self.num_new = changes.new + changes.changed
        if self.num_new == num_inputs:
            report(f"Indexing {self._folder}: {format_count(num_inputs, 'image')}; later, only new and changed ones.")
        elif self.num_new:
            report(f"Indexing {self._folder}: {format_count(self.num_new, 'new or changed image')} of {num_inputs:,}.")
