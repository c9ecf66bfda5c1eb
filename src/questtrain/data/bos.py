"""Which token begins a document.

Asked in this order: the setting data.bos_token; what the tokenizer itself puts before a text (the
post-processor of a tokenizer.json, the bos_id of a SentencePiece model); the bos_token of the
tokenizer_config.json beside it, whether or not its add_bos_token is on, since that is about
prompts; and the spellings of a list. A spelling alone proves little (in some vocabularies ``<s>``
is the HTML tag), so special tokens come before ordinary ones there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from questtrain.errors import UserError, suggestion

SPELLINGS = (
    "<s>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<bos>",
    "[BOS]",
    "<BOS>",
    "<|bos|>",
    "<|startoftext|>",
    "<|im_start|>",
)
CONFIG = "tokenizer_config.json"


class BosError(UserError):
    """No token begins documents, or the wrong one is asked to."""


def choose_bos(
    asked: str | int | None,
    own: str | None,
    beside: Path,
    vocabulary: Mapping[str, int],
    special: Collection[str],
    name: str,
) -> str:
    """The token that begins documents, one of ``vocabulary``.

    ``asked`` is the setting, or the id of one that is settled, ``own`` what the tokenizer puts
    first, ``beside`` the folder of its file, ``special`` the tokens that are no text. BosError: no
    such token, none at all.
    """
    if isinstance(asked, int):
        settled = [token for token, number in vocabulary.items() if number == asked]
        if not settled:
            raise BosError(
                f"the tokenizer {name} has no token {asked}, which began the documents: it is"
                " another one"
            )
        return settled[0]
    if asked is not None:
        if asked not in vocabulary:
            raise BosError(
                f"data.bos_token={asked!r} is no token of {name}.{_known(special)}"
                + suggestion(asked, special)
            )
        return asked
    for token in (own, _configured(beside)):
        if token is not None and token in vocabulary:
            return token
    spelled = [token for token in SPELLINGS if token in vocabulary]
    for token in (*(token for token in spelled if token in special), *spelled):
        return token
    raise BosError(
        f"the tokenizer {name} names no token that begins a document (BOS): no post-processor, no "
        f"{CONFIG}, and none of {', '.join(SPELLINGS)}. Name one of its tokens with "
        f"data.bos_token=….{_known(special)}"
    )


def post_processor_bos(post_processor: Mapping[str, Any] | None) -> str | None:
    """The token that a tokenizer.json's post-processor puts before a text, if any."""
    match post_processor:
        case {"type": "Sequence", "processors": list(parts)}:
            return next(filter(None, map(post_processor_bos, parts)), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(token)}}, *_]}:
            return token
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(token), *_]}:
            return token
        case _:
            return None


def _configured(folder: Path) -> str | None:
    """The bos_token of the folder's tokenizer_config.json: text, or an object that holds it."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BosError(
            f"{path} cannot be read: {error}. Repair it, or name the token that begins documents "
            "with data.bos_token=…"
        ) from error
    match config:
        case {"bos_token": str(token) | {"content": str(token)}}:
            return token
        case _:
            return None


def _known(special: Collection[str]) -> str:
    shown = ", ".join(list(special)[:8])
    return f" Its special tokens: {shown}{', …' if len(special) > 8 else ''}." if special else ""
