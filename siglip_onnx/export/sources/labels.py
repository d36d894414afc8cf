"""Read the labels of an image classifier, and what its logits mean, from ``config.json``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...config import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from ...errors import CheckpointError
from .source import Json, Report

_DEFAULT_LABELS = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers does not write them


def read_labels(document: Json, num_rows: int, path: Path, report: Report) -> tuple[str, ...]:
    """Return the label of each of the classifier's rows.

    Raises:
        CheckpointError: the labels do not belong to the rows, or two are equal.
    """
    id2label = document.get("id2label")
    if id2label is None and num_rows == len(_DEFAULT_LABELS):
        report(f"{path} has no id2label: the labels are {', '.join(_DEFAULT_LABELS.values())}, as in transformers")
        id2label = _DEFAULT_LABELS
    if not isinstance(id2label, dict) or not id2label:
        problem = "no id2label" if id2label is None else f"id2label {id2label!r:.80}"
        raise CheckpointError(
            f"{path} has {problem}, expected an object with a label for each of the {num_rows} rows of "
            "classifier.weight. Add the labels."
        )
    if set(id2label) != {str(number) for number in range(num_rows)}:
        raise CheckpointError(
            f"{path} has {len(id2label)} labels in id2label, from {min(id2label)!r} to {max(id2label)!r}, but "
            f'classifier.weight has {num_rows} rows; expected the ids "0" to "{num_rows - 1}". The two do not belong '
            "together; use the config.json of the same training."
        )
    labels = tuple(id2label[str(number)] for number in range(num_rows))
    # Digits, for example, may be labeled by numbers.
    wrong = [label for label in labels if type(label) not in (str, int) or not str(label).strip()]
    if wrong:
        raise CheckpointError(f"{path} has the label {wrong[0]!r:.80} in id2label, expected a text. Correct it.")
    names = tuple(map(str, labels))
    counts = Counter(names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise CheckpointError(
            f"{path} has the label {repeated[0]!r:.80} {counts[repeated[0]]} times in id2label; expected "
            "different labels. Rename them."
        )
    return names


def read_problem_type(document: Json, num_rows: int, path: Path) -> str:
    """Return what the logits mean; if the file does not say it, one row is a regression, as in transformers.

    Raises:
        CheckpointError: it is something else than transformers knows.
    """
    problem_type = document.get("problem_type")
    if problem_type is None:
        return REGRESSION if num_rows == 1 else SINGLE_LABEL
    if problem_type not in PROBLEM_TYPES:
        raise CheckpointError(
            f"{path} has problem_type {problem_type!r}, expected {SINGLE_LABEL!r}, {MULTI_LABEL!r} or {REGRESSION!r}."
        )
    return str(problem_type)
