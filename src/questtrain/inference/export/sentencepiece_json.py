"""A SentencePiece model as a tokenizer.json with the same ids.

The normalizer does what SentencePiece's does, step by step: its character map, white space
collapsed or kept, one space put first whatever the text begins with, spaces written ▁. Nothing
splits words, as nothing does there. A BPE model's merges follow from its pieces: whatever two
pieces join to a third one, the best score first.
"""

from __future__ import annotations

import base64
from typing import Any

from questtrain.errors import UserError

SPACE = "▁"
UNREACHABLE = -1e6
"""The score of a piece that text never becomes, below any that training gives."""


def tokenizer_json(model: bytes) -> dict[str, Any]:
    """The content of a tokenizer.json without a post-processor; UserError for a kind of model that
    none can express."""
    proto = _parsed(model)
    trained, rules = proto.trainer_spec, proto.normalizer_spec
    kind = trained.ModelType.Name(trained.model_type)
    if kind == "WORD" or trained.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise UserError(
            "this SentencePiece model cannot be written as a tokenizer.json: it is one of whole"
            " words, or has spaces after words or unescaped; BPE and Unigram models can."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(proto),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(rules)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(trained, rules.add_dummy_prefix),
        "model": _unigram(proto) if kind == "UNIGRAM" else _bpe(proto),
    }


def differences(model: bytes) -> list[str]:
    """Texts whose ids may be others by `tokenizer_json` than by SentencePiece, in sentences."""
    proto = _parsed(model)
    kinds = {piece.type for piece in proto.pieces}
    found = []
    if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
        found.append(
            "SentencePiece sums the scores of a Unigram model in 32 bits, tokenizer.json's readers"
            " in 64: where two ways to cut a text are as good, the ids can differ."
        )
    rules, user_defined = proto.normalizer_spec, proto.SentencePiece.USER_DEFINED
    if user_defined in kinds and (rules.add_dummy_prefix or rules.remove_extra_whitespaces):
        found.append(
            "Around a user-defined symbol, tokenizer.json's readers add and drop spaces that"
            " SentencePiece does not: the ids of such a text can differ."
        )
    return found


def _parsed(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise UserError(
            "a SentencePiece model is read with protobuf, which Python does not find:"
            " pip install '.[export]' in the folder of questtrain's sources."
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    return proto


def _added(proto: Any) -> list[dict[str, Any]]:
    """Control pieces, which no text becomes, as special tokens; user-defined ones, which are found
    before anything else, as others."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": piece.piece, **flags, "special": piece.type == piece.CONTROL}
        for number, piece in enumerate(proto.pieces)
        if piece.type in (piece.CONTROL, piece.USER_DEFINED)
    ]


def _normalizers(rules: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if rules.precompiled_charsmap:
        characters = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": characters})
    if rules.remove_extra_whitespaces:
        steps.append(_replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, ""))
        steps.append(_replace({"Regex": " {2,}"}, " "))
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return [*steps, _replace({"String": " "}, SPACE)]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _decoder(trained: Any, has_prefix: bool) -> dict[str, Any]:
    steps = [_replace({"String": trained.unk_piece}, trained.unk_surface)]
    steps.append(_replace({"String": SPACE}, " "))
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(proto: Any) -> dict[str, Any]:
    """Pieces that no text becomes would be found in it here: their score forbids it."""
    vocab = [
        [piece.piece, piece.score if piece.type == piece.NORMAL else UNREACHABLE]
        for piece in proto.pieces
    ]
    return {
        "type": "Unigram",
        "unk_id": proto.trainer_spec.unk_id,
        "vocab": vocab,
        "byte_fallback": proto.trainer_spec.byte_fallback,
    }


def _bpe(proto: Any) -> dict[str, Any]:
    """A model of single characters has no merges."""
    trained = proto.trainer_spec
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[trained.unk_id].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": trained.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.piece: number for number, piece in enumerate(proto.pieces)},
        "merges": _merges(proto) if trained.model_type == trained.BPE else [],
    }


def _merges(proto: Any) -> list[list[str]]:
    """``[left, right]`` of all pairs of pieces that make a third one, by its score, the highest
    first; of one piece the pair with the longest left half first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    found = []
    for whole, score in scores.items():
        for cut in range(len(whole) - 1, 0, -1):
            left, right = whole[:cut], whole[cut:]
            if left in scores and right in scores:
                found.append((-score, [left, right]))
    return [pair for _, pair in sorted(found, key=lambda each: each[0])]
