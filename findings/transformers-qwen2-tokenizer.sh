#!/usr/bin/env bash
# transformers 5.23.0: beside a config.json of model_type qwen2, AutoTokenizer takes Qwen2Tokenizer whatever class
# tokenizer_config.json names, and of tokenizer.json it keeps vocabulary and merges alone: words are split as Qwen's are, and
# the same files give other ids than beside model_type llama. PreTrainedTokenizerFast reads them as they are.
# Seen: "llama: as the file; qwen2: other ids; qwen2 by PreTrainedTokenizerFast: as the file".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 2>/dev/null
"$w/venv/bin/python" - "$w/model" <<'P'
import json
import pathlib
import sys

from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

text = "def f(x):\n    return 12345 * x\n\n\n    # 678\n" * 9
bpe = ByteLevelBPETokenizer()
bpe.train_from_iterator([text], vocab_size=400, special_tokens=["<s>"], show_progress=False)
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
bpe.save(str(folder / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
(folder / "tokenizer_config.json").write_text(json.dumps(settings))


def ids(kind, model_type):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    same = kind.from_pretrained(folder)(text)["input_ids"] == bpe.encode(text).ids
    return "as the file" if same else "other ids"


found = ids(AutoTokenizer, "llama"), ids(AutoTokenizer, "qwen2"), ids(PreTrainedTokenizerFast, "qwen2")
print("llama: {}; qwen2: {}; qwen2 by PreTrainedTokenizerFast: {}".format(*found))
raise SystemExit(0 if found == ("as the file", "other ids", "as the file") else 1)
P
