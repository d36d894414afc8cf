"""What the files beside a SentencePiece model of SigLIP say about it: other padding, cased texts, added tokens.

Sources: ``SiglipTokenizer`` and ``PreTrainedTokenizer`` of transformers 4.57, which writes ``tokenizer_config.json``
and ``added_tokens.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ADDED_TOKENS, TOKENIZER_CONFIG, read_document
from ..errors import CheckpointError

EOS = "</s>"
MAX_ADDED_TOKENS = 40  # each is a step of the normalizer
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
TOKEN_KEYS = ("content", *_FLAGS)  # besides its id

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of a checkpoint's tokenizer; the defaults are those of ``SiglipTokenizer``.

    Attributes:
        lower: lower-case texts.
        pad: the token that pads texts; empty for that of the published checkpoints.
        tokens: the added tokens, as in a ``tokenizer.json``, by rising id; also those that the vocabulary has.
    """

    lower: bool = True
    pad: str = ""
    tokens: tuple[Json, ...] = ()

    def marked(self, pieces: Sequence[str]) -> list[Json]:
        """Return the tokens that texts are to be searched for, other than special ones of the vocabulary itself.

        Raises:
            CheckpointError: their ids do not follow those of the pieces, or they cannot be exported.
        """
        known = [token for token in self.tokens if token["id"] < len(pieces) and _is_piece(token, pieces)]
        new = [token for token in self.tokens if token not in known]
        for number, token in enumerate(new, len(pieces)):
            if token["id"] != number:
                raise CheckpointError(
                    f"The tokenizer adds the token {token['content']!r:.60} with the id {token['id']}, but the next "
                    f"free id is {number}: the vocabulary has {len(pieces):,} pieces. The two do not belong together."
                )
        marked = [token for token in known if not token["special"]] + new
        if len(marked) > MAX_ADDED_TOKENS:
            raise CheckpointError(
                f"The tokenizer adds {len(marked)} tokens; at most {MAX_ADDED_TOKENS} can be exported."
            )
        for token in marked:
            if token["single_word"]:
                raise CheckpointError(
                    f"The tokenizer adds the token {token['content']!r:.60} for whole words only (single_word), which "
                    "cannot be exported."
                )
        return marked


def read_settings(folder: Path, tokens: Iterable[Json] = ()) -> TokenizerSettings:
    """Return the settings beside a tokenizer, and the added tokens of its ``tokenizer.json``, if it is one.

    Raises:
        CheckpointError: a file is damaged, or names another end token than ``</s>``.
    """
    config = read_document(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    listed = read_document(folder / ADDED_TOKENS) if (folder / ADDED_TOKENS).exists() else {}
    try:
        by_id = {token["id"]: _FLAGS | token for token in tokens}
        by_id |= {id_: _FLAGS | {"id": id_, "content": content} for content, id_ in listed.items()}
        decoder = config.get("added_tokens_decoder") or {}
        by_id |= {int(id_): _FLAGS | token | {"id": int(id_)} for id_, token in decoder.items()}
        for token in by_id.values():
            _check_token(token)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"The added tokens of {folder} are damaged ({error}). Download them again.") from error
    if (eos := _content(config.get("eos_token"))) not in ("", EOS):
        raise CheckpointError(f"The tokenizer of {folder} ends texts with {eos!r:.60}; those of SigLIP end with {EOS}.")
    lower = config.get("do_lower_case", True)
    if not isinstance(lower, bool):
        raise CheckpointError(f"{folder / TOKENIZER_CONFIG} has do_lower_case {lower!r:.60}, expected true or false.")
    return TokenizerSettings(lower, _content(config.get("pad_token")), tuple(by_id[id_] for id_ in sorted(by_id)))


def check_length(folder: Path, text_length: int) -> None:
    """Check that the tokenizer beside a checkpoint does not pad texts to fewer tokens than the text tower takes.

    Raises:
        CheckpointError: it does. The tower pools the last token, so that all embeddings would differ.
    """
    path = folder / TOKENIZER_CONFIG
    length = read_document(path).get("model_max_length") if path.exists() else None
    if isinstance(length, int | float) and length < text_length:
        raise CheckpointError(
            f"{path} pads texts to {length} tokens (model_max_length), but the text tower takes {text_length}, and "
            f"other padding gives other embeddings. If the model was trained with texts of {text_length} tokens, write "
            "that number there."
        )


def read_sides(folder: Path) -> dict[str, str]:
    """Return ``padding_side`` and ``truncation_side`` as ``tokenizer_config.json`` states them, else ``right``.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / TOKENIZER_CONFIG
    config = read_document(path) if path.exists() else {}
    return {name: str(config.get(name, "right")) for name in ("padding_side", "truncation_side")}


def check_sides(folder: Path) -> None:
    """Check that the tokenizer beside a checkpoint pads and truncates texts on the right.

    Raises:
        CheckpointError: it does not. The tower pools the last token, so that all embeddings would differ.
    """
    for name, side in read_sides(folder).items():
        if side != "right":
            raise CheckpointError(
                f"{folder / TOKENIZER_CONFIG} has {name} {side!r:.60}, expected 'right', as the published SigLIPs are "
                "trained; the other side gives other embeddings. If the model was trained so too, write 'right' there."
            )


def named_pad(folder: Path) -> str:
    """Return the padding token that ``tokenizer_config.json`` names, or an empty string."""
    path = folder / TOKENIZER_CONFIG
    return _content(read_document(path).get("pad_token")) if path.exists() else ""


def _content(token: object) -> str:
    """Return the text of a token, which a config may describe in full."""
    return str(token.get("content") if isinstance(token, dict) else token or "")


def _is_piece(token: Json, pieces: Sequence[str]) -> bool:
    return bool(pieces[token["id"]] == token["content"])


def _check_token(token: Json) -> None:
    if type(token["id"]) is not int or token["id"] < 0:
        raise ValueError(f"the id {token['id']!r:.30}")
    if not isinstance(token["content"], str) or not token["content"]:
        raise ValueError(f"the token {token['content']!r:.30}")
    if not all(isinstance(token[flag], bool) for flag in _FLAGS):
        raise ValueError(f"the token {token['content']!r:.30} has flags that are not true or false")
