#!/usr/bin/env bash
# tokenizers 0.23.3: encode_special_tokens=True, which makes text that spells a special token ordinary text, does so
# for a BPE model; a Unigram model whose vocabulary holds the special token as a piece (as converted SentencePiece
# models do) still gives its id for the literal text. So text can begin a document in the middle of one.
# Seen: "BPE: False, Unigram: True" (whether the literal <s> became the special token).
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3 2>/dev/null
"$w/venv/bin/python" - <<'P'
from tokenizers import Tokenizer, models


def literal_is_special(tokenizer):
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.encode_special_tokens = True
    return tokenizer.token_to_id("<s>") in tokenizer.encode("a<s>b").ids


letters = ["a", "b", "s", "<", ">"]
bpe = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0)] + [(each, -2.0) for each in letters], unk_id=0))
found = literal_is_special(bpe), literal_is_special(unigram)
print("BPE: {}, Unigram: {}".format(*found))
raise SystemExit(0 if found == (False, True) else 1)
P
