"""Push a bundle to the Hugging Face Hub, with a generated model card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..bundle.folder import open_bundle, verify_folder
from ..bundle.manifest import MANIFEST, read_manifest
from ..errors import BundleError, DownloadError, UploadError, first_line
from .card import CARD, MARK, model_card
from .download import Repository, check_commit, client, fetch, file_problem, is_offline, library, look_up
from .pull import holds_bundle

Report = Callable[[str], None]


def push(path: Path, name: str, *, private: bool, report: Report, overwrite: bool = False) -> str:
    """Upload the files of a bundle and its card in one commit to ``owner/name``, which is created if need be.

    A card in the repository that a person wrote is kept. Returns the commit's id.

    Args:
        path: the bundle.
        name: the repository.
        private: make it private if it is created.
        report: called with lines of progress.
        overwrite: replace files of the same names in a repository that holds no bundle.

    Raises:
        BundleError: the bundle is damaged.
        UploadError: the repository holds other files of these names, offline, not permitted, the upload fails, or the
            new revision lacks files.
    """
    bundle = open_bundle(path)
    if problems := verify_folder(path):
        raise BundleError(
            f"{path} is damaged, so that nothing was uploaded: {'; '.join(problems)}. Export it again, or drop deleted "
            "variants: siglip-onnx models strip"
        )
    if is_offline():
        raise UploadError(f"{name} cannot be uploaded in offline mode. Unset HF_HUB_OFFLINE.")
    files = [MANIFEST, *read_manifest(path).all_files()]
    size_bytes = sum((path / file).stat().st_size for file in files)
    try:
        api = client()
        api.create_repo(name, private=private, exist_ok=True)
        contents: dict[str, Any] = {file: path / file for file in files}
        repository = look_up(name, None)
        others = [] if holds_bundle(repository) else [file for file in files if file in repository.files]
        if others and not overwrite:
            raise UploadError(
                f"{name} holds no model of siglip_onnx, but {', '.join(others):.200}, so nothing was uploaded. Choose "
                "another repository, or replace these files: --overwrite"
            )
        if _may_replace_card(repository):
            contents[CARD] = model_card(bundle, name).encode()
        else:
            report(f"{CARD} of {name} was not written by siglip-onnx, and is kept")
        report(f"Uploading {len(contents)} files, {size_bytes / 1e6:,.1f} MB, to {name}")
        operations = [library().CommitOperationAdd(file, content) for file, content in contents.items()]
        commit: str = api.create_commit(name, operations, commit_message=f"Upload {bundle.manifest.model_name}").oid
        pushed = look_up(name, check_commit(commit, name))
    except (DownloadError, UploadError):
        raise
    except Exception as error:  # the client's exceptions have no common base class
        raise UploadError(
            f"{name} could not be uploaded ({type(error).__name__}: {first_line(error)}). Set HF_TOKEN to a token that "
            "may write to it, or check the network; files that are there already are not sent again."
        ) from error
    _check_pushed(pushed, path, contents)
    return commit


def _check_pushed(repository: Repository, path: Path, files: Iterable[str]) -> None:
    """Check that a revision holds the files: the Hub leaves out those that the repository's ``.gitignore`` names.

    Raises:
        UploadError: some are missing or others.
    """
    there = repository.files
    left_out = [file for file in files if file not in there or (file != CARD and file_problem(there[file], path))]
    if left_out:
        raise UploadError(
            f"{repository.name}@{repository.revision} lacks {len(left_out)} of the uploaded files, or has others of "
            f"these names: {', '.join(left_out):.200}. Remove their names from .gitignore of the repository, and push "
            "again."
        )


def _may_replace_card(repository: Repository) -> bool:
    """Say whether a repository has no card, or one that this module wrote."""
    if CARD not in repository.files:
        return True
    with tempfile.TemporaryDirectory() as folder:
        fetch(repository, [CARD], Path(folder))
        return MARK in (Path(folder) / CARD).read_text(encoding="utf-8", errors="replace")  # `fetch` bounds its size
