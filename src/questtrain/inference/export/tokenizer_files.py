"""A run's tokenizer as transformers and most other programs read one: three files of JSON.

``tokenizer.json`` puts BOS before a text, as training did; ``tokenizer_config.json`` has
AutoTokenizer take a literal ``<s>`` in a text as text, as training did; ``generation_config.json``
ends a text where `questtrain generate` does, at the BOS of the next document.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from questtrain.data.tokenizer import SentencePieceTokenizer, Tokenizer
from questtrain.inference.export.sentencepiece_json import differences, tokenizer_json
from questtrain.store.files import write_json, write_text

TOKENIZER = "tokenizer.json"


def write_tokenizer_files(tokenizer: Tokenizer, sequence_length: int, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json.

    ``AutoTokenizer.from_pretrained(folder)(text)`` gives BOS and the tokenizer's own ids of text.
    """
    content = tokenizer_content(tokenizer)
    bos = bos_token(content, tokenizer.bos_id)
    write_text(folder / TOKENIZER, json.dumps(content, ensure_ascii=False, indent=1))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": sequence_length,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer))


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """There is no EOS: a document ends where the next one begins. Padding, which only a batch of
    prompts needs, is masked."""
    bos = tokenizer.bos_id
    return {"bos_token_id": bos, "eos_token_id": bos, "pad_token_id": bos}


def tokenizer_content(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json holds: the run's own file, or its SentencePiece model converted, with
    BOS as a special token that comes before every text."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        content = tokenizer_json(tokenizer.path.read_bytes())
    else:
        content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    bos = bos_token(content, tokenizer.bos_id)
    content["added_tokens"] = _with_special(content.get("added_tokens") or [], bos, tokenizer)
    content |= {"truncation": None, "padding": None, "post_processor": _begins_with(bos, tokenizer)}
    return content


def bos_token(content: dict[str, Any], bos_id: int) -> str:
    """How a tokenizer.json spells the token of an id."""
    import tokenizers

    token = tokenizers.Tokenizer.from_str(json.dumps(content)).id_to_token(bos_id)
    assert token is not None  # the run's tokenizer has it
    return token


def tokenizer_limits(tokenizer: Tokenizer) -> list[str]:
    """Texts whose ids may be others by tokenizer.json than in training, in sentences."""
    import tokenizers

    limits: list[str] = []
    if isinstance(tokenizer, SentencePieceTokenizer):
        limits = differences(tokenizer.path.read_bytes())
    content = tokenizer_content(tokenizer)
    bos = bos_token(content, tokenizer.bos_id)
    written = tokenizers.Tokenizer.from_str(json.dumps(content))
    written.encode_special_tokens = True
    spelled = written.encode_batch([bos, f" {bos}", f"x{bos}"], add_special_tokens=False)
    if any(tokenizer.bos_id in encoding.ids for encoding in spelled):
        limits.append(f"A text that spells {bos} becomes BOS; in training it did not.")
    return limits


def _with_special(
    added: list[dict[str, Any]], bos: str, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The list of added tokens with BOS as one that is special: such a one is not found in text
    when special tokens are split."""
    entry = {"id": tokenizer.bos_id, "content": bos, "single_word": False, "lstrip": False}
    entry |= {"rstrip": False, "normalized": False, "special": True}
    others = [token for token in added if token["id"] != tokenizer.bos_id]
    return sorted([*others, entry], key=lambda token: int(token["id"]))


def _begins_with(bos: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """A post-processor: BOS, then the text, or two texts."""
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    texts = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": [start, texts[0]],
        "pair": [start, *texts],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
