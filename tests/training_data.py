"""A small real corpus and the settings of a tiny run on it, shared by the wings' tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE_FILES = ("argparse", "ast", "codecs", "difflib", "inspect", "shutil", "tarfile", "typing")
TINY = (
    "model=nano",
    "model.num_layers=1",
    "model.hidden_size=32",
    "sequence_length=32",
    "batch_size=4",
    "train.validation_tokens=512",
    "train.threads=1",
    "device=cpu",
)


def make_corpus(folder: Path) -> None:
    """Copy some standard-library sources, train a small tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    texts = folder / "texts"
    texts.mkdir(parents=True)
    for module in SOURCE_FILES:
        source = Path(os.__file__).with_name(f"{module}.py")
        (texts / f"{module}.txt").write_text(source.read_text(encoding="utf-8"))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        (path.read_text() for path in sorted(texts.iterdir())),
        vocab_size=512,
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def corpus_settings(folder: Path) -> list[str]:
    """``data=`` settings of what `make_corpus` made."""
    return [
        "data=text",
        f"data.files={folder / 'texts'}/*.txt",
        f"data.tokenizer={folder / 'tokenizer.json'}",
        f"data.cache_dir={folder / 'cache'}",
        "data.validation_fraction=0.3",
        "data.num_workers=1",
    ]


def questtrain(*words: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "questtrain.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def rows(run: Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of the metrics rows that have ``key``."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row[key]) for row in map(json.loads, lines) if key in row]
