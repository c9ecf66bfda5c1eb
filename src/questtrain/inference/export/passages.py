"""The fixed texts that a certificate compares two runtimes on: prose, code, other scripts."""

from __future__ import annotations

from torch import Tensor, tensor

from questtrain.data import Tokenizer

PASSAGES = (
    "The lighthouse keeper counted the ships that passed before noon: eleven going north, four"
    " going south, and one that seemed unable to decide. He wrote the numbers into the long book,"
    " as his mother had done, and added the wind, the height of the sea and the colour of the sky,"
    " which that morning was the grey of wet slate. Nobody had ever asked him for the book. Still,"
    " when a number was missing, he slept badly.",
    "def moving_average(values, window):\n"
    '    """The mean of each run of `window` neighbours."""\n'
    "    if window < 1:\n"
    '        raise ValueError(f"window must be positive, not {window}")\n'
    "    total = sum(values[:window])\n"
    "    yield total / window\n"
    "    for old, new in zip(values, values[window:]):\n"
    "        total += new - old\n"
    "        yield total / window\n",
    "To make the dough, mix 500 g of flour with 320 ml of water, 10 g of salt and 3 g of yeast."
    " Knead for ten minutes; let it rest until it has doubled, about two hours at 22 °C. Shape it"
    " gently, and bake it at 230 °C for 35–40 minutes. It is done when it sounds hollow.",
    "Grüße aus Köln! Le café est déjà fermé, mañana será otro día. Журавли летят на юг. 東京の夜は"
    "静かだ。 한국어 문장도 하나. ∀x ∈ M: x² ≥ 0 — “quoted”, ½ + ¼ = ¾.",
    '{"name": "run-17", "steps": 1200, "loss": [6.02, 4.91, 4.37], "tags": ["w4a4", "c4"],'
    ' "done": true, "parent": null}\n'
    "| size | layers | loss |\n|---|---|---|\n| 30M | 6 | 3.21 |\n| 100M | 8 | 2.94 |\n",
)
TEXTS = (
    *PASSAGES,
    "",
    " ",
    "  two spaces,\ttabs\t\tand\r\nother ends of lines\n\n\n  ",
    "I'll, you're, it's, WE'VE, o'clock; 'quoted' don't",
    "1 12 123 1234 3.14159 1,000,000 ١٢٣ Ⅳ ½",
    "x=f(y)+{[<z>]}!=~^`|\\//**--..__@#$%&",
    "é \u200b\u00a0\u3000 \U0001d518 🙂👩\u200d👩\u200d👧 \ufeff नमस्ते สวัสดี مرحبا",
    "<unk></s><pad><|endoftext|> [INST]",
)
"""What a tokenizer that came with an export has to encode as the run's own does."""

LONGEST = 128
"""Tokens of a prompt at the most."""


def prompts(tokenizer: Tokenizer, sequence_length: int) -> list[Tensor]:
    """The passages as prompts, int64 ``[T]``: each a document's beginning (BOS), or the next part
    of one with BOS before it, of at most ``sequence_length`` and `LONGEST` tokens."""
    size = min(sequence_length, LONGEST) - 1
    parts = []
    for ids in tokenizer.encode_batch(PASSAGES):
        for start in range(0, len(ids), size):
            parts.append(tensor([tokenizer.bos_id, *ids[start : start + size]]))
    return parts
