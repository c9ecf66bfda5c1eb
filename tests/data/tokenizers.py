"""Small tokenizers of every family, as published files have them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_bpe(texts: Iterable[str], special: Sequence[str] = ("<s>",), prefix: bool = False) -> Any:
    """A byte-level BPE, GPT-2's way."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return _trained(tokenizer, texts, special)


def llama3_bpe(texts: Iterable[str]) -> Any:
    """A byte-level BPE whose words are split as Llama 3's."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _trained(tokenizer, texts, ["<s>"])


def _trained(tokenizer: Any, texts: Iterable[str], special: Sequence[str]) -> Any:
    from tokenizers import decoders, pre_tokenizers, trainers

    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def llama2_bpe(texts: Iterable[str]) -> Any:
    """A BPE over whole documents, as Llama 2's tokenizer.json: the normalizer puts a space first
    and nothing splits words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [prepend, space]}
    return Tokenizer.from_str(json.dumps(content))


def unigram(texts: Iterable[str], scheme: str = "always", unknown: bool = True) -> Any:
    """A Unigram model over words with a space in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<unk>"],
        unk_token="<unk>" if unknown else None,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_piece(texts: Iterable[str]) -> Any:
    """BERT's kind."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[BOS]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentencepiece_model(texts: Iterable[str], kind: str = "bpe", **options: object) -> bytes:
    """A SentencePiece model with byte fallback unless ``options`` say otherwise."""
    import sentencepiece

    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n"))
    defaults = {"byte_fallback": True, "hard_vocab_limit": False, "vocab_size": 600}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=kind,
        minloglevel=2,
        **(defaults | options),
    )
    return model.getvalue()


def save(tokenizer: Any, path: Path, **changes: object) -> Path:
    """Write a tokenizer.json with ``changes`` of its top-level keys, or a model's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, bytes):
        path.write_bytes(tokenizer)
    else:
        content = json.loads(tokenizer.to_str()) | changes
        path.write_text(json.dumps(content), encoding="utf-8")
    return path
