"""A run's tokenizer as a GGUF file's keys, from which llama.cpp encodes text as the run does.

llama.cpp has the pre-tokenizers it knows by name alone; the key's absence, or another name, loads
and makes other ids. So a tokenizer.json is taken only where it splits text as one of these does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from questtrain.data import Tokenizer
from questtrain.data.tokenizer import SentencePieceTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (llama_token_type)."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _CL100K.replace("NUMBERS", r"\p{N}{1,3}")
QWEN2 = _CL100K.replace("NUMBERS", r"\p{N}")
DIGITS = "each digit"

PRE_TOKENIZERS: dict[tuple[str | None, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
}
"""How a tokenizer.json splits text → llama.cpp's name of it."""

IGNORE_MERGES = ("llama-bpe",)
"""Those with which llama.cpp takes a word that is a token as it is (``ignore_merges``)."""


@dataclass
class Vocabulary:
    """What the file says of a tokenizer: ``tokens`` and their ``kinds`` by id, ``merges`` or
    ``scores``, and further ``flags``."""

    model: str
    tokens: list[str]
    kinds: list[int]
    pre: str | None = None
    merges: list[str] | None = None
    scores: list[float] | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""

    def padded(self, size: int) -> Vocabulary:
        """As long as the embedding's rows; what only pads them is never made of text."""
        missing = range(len(self.tokens), size)
        self.tokens = self.tokens + [f"[PAD{number}]" for number in missing]
        self.kinds = self.kinds + [UNUSED] * len(missing)
        if self.scores is not None:
            self.scores = self.scores + [-1e4] * len(missing)
        return self


def refusal(tokenizer: Tokenizer) -> str | None:
    """Why llama.cpp cannot encode as the tokenizer does; None where it can."""
    found = _read(tokenizer)
    return found if isinstance(found, str) else None


def vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The tokenizer, which is not refused, for an embedding of ``size`` rows."""
    found = _read(tokenizer)
    if isinstance(found, str):
        raise ValueError(found)
    return found.padded(size)


def is_nfc(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer.json composes characters before it cuts them."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return False
    content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    return content.get("normalizer") is not None


def _read(tokenizer: Tokenizer) -> Vocabulary | str:
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _of_sentencepiece(tokenizer)
    content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    return _of_json(content, tokenizer.bos_id)


def _of_json(content: dict[str, Any], bos: int) -> Vocabulary | str:
    """A byte-level BPE of the library ``tokenizers``."""
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        return (
            f"its tokenizer.json holds a {model.get('type')} model that is not byte-level, which"
            " llama.cpp reads of a SentencePiece tokenizer.model only"
        )
    if (why := _unlike_byte_level(content)) is not None:
        return f"its tokenizer.json {why}, which llama.cpp does not"
    pre = PRE_TOKENIZERS.get(_splits(content.get("pre_tokenizer")))
    if pre is None:
        return (
            "its tokenizer.json splits text in a way that llama.cpp has no name for; it has"
            f" {', '.join(PRE_TOKENIZERS.values())} and others"
        )
    if bool(model.get("ignore_merges")) != (pre in IGNORE_MERGES):
        return (
            f"its tokenizer.json has ignore_merges={model.get('ignore_merges')}, and llama.cpp's"
            f" {pre} the opposite"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens, kinds = _tokens(content, bos)
    return Vocabulary("gpt2", tokens, kinds, pre, merges)


def _unlike_byte_level(content: dict[str, Any]) -> str | None:
    """What a tokenizer.json does to text that no byte-level BPE of llama.cpp does."""
    normalizer, model = content.get("normalizer"), content["model"]
    if normalizer not in (None, {"type": "NFC"}):
        return f"normalizes text ({normalizer.get('type')})"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            return f"has {key}={model[key]!r}"
    if any(step.get("add_prefix_space") for step in _steps(content.get("pre_tokenizer"))):
        return "puts a space before a text"
    stripped = [t for t in content.get("added_tokens") or [] if t.get("lstrip") or t.get("rstrip")]
    if any(not token.get("special") for token in stripped):
        return "strips the space around an added token"
    return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    match pre_tokenizer:
        case None:
            return []
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [step for part in parts for step in _steps(part)]
        case _:
            return [pre_tokenizer]


def _splits(pre_tokenizer: dict[str, Any] | None) -> tuple[str | None, ...]:
    """The expressions that text is cut by, one after the other; None for a cut of another kind."""
    found: list[str | None] = []
    for step in _steps(pre_tokenizer):
        match step:
            case {"type": "ByteLevel"}:
                found += [GPT2] if step.get("use_regex", True) else []
            case {"type": "Digits", "individual_digits": True}:
                found.append(DIGITS)
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated"}:
                found.append(None if step.get("invert") else regex)
            case _:
                found.append(None)
    return tuple(found)


def _tokens(content: dict[str, Any], bos: int) -> tuple[list[str], list[int]]:
    """Spelling and kind of every id; ids that nobody has are padding."""
    by_id = {number: (token, NORMAL) for token, number in content["model"]["vocab"].items()}
    for entry in content.get("added_tokens") or []:
        special = entry.get("special") or entry["id"] == bos
        by_id[entry["id"]] = (entry["content"], CONTROL if special else USER_DEFINED)
    by_id[bos] = (by_id[bos][0], CONTROL)
    every = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(max(by_id) + 1)]
    return [token for token, _ in every], [kind for _, kind in every]


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> Vocabulary | str:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(tokenizer.path.read_bytes())
    if (why := _unlike_llama_cpp(proto)) is not None:
        return f"its SentencePiece model {why}"
    kinds = [int(piece.type) for piece in proto.pieces]
    kinds[tokenizer.bos_id] = CONTROL
    return Vocabulary(
        SENTENCEPIECE[proto.trainer_spec.model_type],
        [piece.piece for piece in proto.pieces],
        kinds,
        pre="default",
        scores=[piece.score for piece in proto.pieces],
        flags={
            "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
            "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        },
        charsmap=proto.normalizer_spec.precompiled_charsmap,
    )


SENTENCEPIECE = {1: "t5", 2: "llama"}
"""SentencePiece's kind of model, unigram or BPE → llama.cpp's (tokenizer.ggml.model)."""


def _unlike_llama_cpp(proto: Any) -> str | None:
    """What a SentencePiece model does that llama.cpp does not, or the other way round, each seen to
    give other ids."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kind = SENTENCEPIECE.get(trainer.model_type)
    if kind is None:
        return "is one of words or characters, and llama.cpp reads BPE and unigram ones"
    if trainer.treat_whitespace_as_suffix:
        return "puts the space of a word after it, which llama.cpp puts before"
    if kind == "t5" and trainer.byte_fallback:
        return "is a unigram one with byte_fallback, which llama.cpp does not do for these"
    if kind == "t5" and not (normalizer.remove_extra_whitespaces and normalizer.add_dummy_prefix):
        return (
            "is a unigram one with remove_extra_whitespaces or add_dummy_prefix off, which"
            " llama.cpp takes as on"
        )
    if kind == "llama" and not trainer.byte_fallback:
        return "is a BPE without byte_fallback, of which llama.cpp finds no token for some bytes"
    if kind == "llama" and (normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces):
        return (
            f"is a BPE that normalizes text (rule {normalizer.name!r}, remove_extra_whitespaces"
            f"={normalizer.remove_extra_whitespaces}), which llama.cpp does not for these"
        )
    return None
