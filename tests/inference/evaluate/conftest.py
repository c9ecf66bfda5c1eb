"""A tiny trained run in several formats, and local tasks in the harness' own YAML."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from questtrain.cli.main import main
from tests.inference.export.conftest import in_format

SETTINGS = (
    "model=nano",
    "model.num_layers=2",
    "model.hidden_size=64",
    "bits=w4a16",
    "batch_size=8",
    "micro_batch_size=8",
    "sequence_length=64",
    "max_steps=40",
    "eval_every=40",
    "checkpoint_every=20",
    "lr=0.01",
    "train.keep_checkpoints=2",
    "train.validation_tokens=256",
    "train.threads=1",
    "device=cpu",
)

ENDINGS = {
    "task": "endings",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "endings.jsonl"}},
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "fewshot_split": "validation",
    "doc_to_text": "{{context}}",
    "doc_to_target": "label",
    "doc_to_choice": "endings",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 2.0},
}
TEXTS = {
    "task": "texts",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "texts.jsonl"}},
    "output_type": "loglikelihood_rolling",
    "validation_split": "validation",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}
ANSWERS = {
    "task": "answers",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "answers.jsonl"}},
    "output_type": "generate_until",
    "validation_split": "validation",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}],
}
OTHER_ENDINGS = {"task": "other_endings", "include": "endings.yaml"}
BOTH = {
    "group": "both",
    "task": ["endings", "other_endings"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


@pytest.fixture(scope="session")
def trained(corpus: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``trained("w4a4")`` → the folder of a completed run; the same weights in every format."""
    runs = tmp_path_factory.mktemp("evaluated")

    def run(bits: str) -> Path:
        if not (runs / "w4a16").exists():
            assert main(["train", *SETTINGS, *corpus, f"runs_dir={runs}", "name=w4a16"]) == 0
        if not (runs / bits).exists():
            in_format(runs / "w4a16", runs / bits, bits, {})
        return runs / bits

    return run


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML files of four tasks and a group, and the JSON lines that they ask about."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in (ENDINGS, TEXTS, ANSWERS, OTHER_ENDINGS, BOTH):
        name = task.get("group", task["task"])
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    draw = random.Random(0)
    source = Path(random.__file__).read_text()
    parts = [part for part in source.split("\n\n") if len(part) > 40]
    endings, texts, answers = [], [], []
    for number in range(16):
        part, *others = draw.sample(parts, 5)
        cut = part[: draw.randrange(200)] if number > 1 else ""
        context = cut + draw.choice(["", " ", "\n    "])
        choices = [others[0][:20], " " + others[1][:60], others[2][:5], others[3][-40:]]
        endings.append({"context": context, "endings": choices, "label": draw.randrange(4)})
        answers.append({"question": part[: draw.randrange(1, 250)], "answer": part[-5:]})
        texts.append({"text": part})
    for name, rows in (("endings", endings), ("texts", texts[:6]), ("answers", answers[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
