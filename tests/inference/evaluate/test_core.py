"""CORE: hand-written prompts through a plain fp64 model give the same answers and accuracies."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from random import Random
from statistics import fmean

import pytest

from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Asking
from questtrain.inference.evaluate.core import CoreSuite
from questtrain.inference.evaluate.core_tasks import CORE
from questtrain.inference.evaluate.question_prompts import SHUFFLE, scored_parts
from questtrain.inference.evaluate.questions import (
    LanguageModeling,
    MultipleChoice,
    Schema,
    read_questions,
)
from tests.inference.evaluate.models import Plain, opinionated_model, tokenizer_of_settings

WORDS = "return self value the of file list name import class error open path not data"
COUNT = 13
TASKS = {task.name: task for task in CORE}


def rows_of(kind: str, seed: int) -> list[dict]:
    """Questions of few words, so that eleven of them fit into the context of a test."""
    draw = Random(seed)

    def some(count: int) -> str:
        return " ".join(draw.choices(WORDS.split(), k=count))

    if kind == "multiple_choice":
        return [
            {"query": some(2), "choices": [some(1), some(2), some(1)], "gold": i % 3}
            for i in range(COUNT)
        ]
    if kind == "schema":
        return [
            {"context_options": [some(2), some(3)], "continuation": some(2), "gold": i % 2}
            for i in range(COUNT)
        ]
    return [{"context": some(3) + " ", "continuation": some(1), "x": 1} for _ in range(COUNT)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Files of all 22 tasks, in the layout of the bundle."""
    root = tmp_path_factory.mktemp("bundle")
    for number, file in enumerate(sorted({task.file for task in CORE})):
        kind = next(task.kind for task in CORE if task.file == file)
        path = root / "eval_data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) for row in rows_of(kind, number)]
        path.write_text("\n".join(lines) + "\n\n")
    return root


@pytest.fixture(scope="module")
def trained(compose, corpus):
    return opinionated_model(compose, tokenizer_of_settings(corpus), length=256)


@pytest.fixture(scope="module")
def results(bundle, trained):
    asking = Asking(trained)
    return CoreSuite.read(str(bundle)).evaluate(asking).tasks


def by_hand(trained, bundle: Path, name: str) -> float:
    """The accuracy of a task, written out: shuffled, examples drawn by index, one prompt at a
    time."""
    task, plain = TASKS[name], Plain(trained)
    rows = [json.loads(line) for line in (bundle / "eval_data" / task.file).read_text().split("\n")
            if line]  # fmt: skip
    Random(SHUFFLE).shuffle(rows)
    right = []
    for index, row in enumerate(rows):
        others = rows[:index] + rows[index + 1 :]
        shots = Random(1234 + index).sample(others, task.shots) if task.shots else []
        right.append(HANDS[task.kind](plain, row, shots, task.delimiter))
    return fmean(right)


def choice_by_hand(plain: Plain, row: dict, shots: list[dict], delimiter: str) -> bool:
    solved = [s["query"] + delimiter + s["choices"][s["gold"]] + "\n\n" for s in shots]
    asked = "".join(solved) + row["query"] + delimiter
    ids = [plain.ids(asked + choice) for choice in row["choices"]]
    start = next(i for i in range(1000) if len({tuple(each[: i + 1]) for each in ids}) > 1)
    means = [fmean(plain.logprobs(each)[0][start - 1 :]) for each in ids]
    return means.index(max(means)) == row["gold"]


def schema_by_hand(plain: Plain, row: dict, shots: list[dict], delimiter: str) -> bool:
    assert not shots, "both schemas of CORE are asked without examples"
    ids = [plain.ids(option + delimiter + row["continuation"]) for option in row["context_options"]]
    shared = next(n for n in range(1, 99) if ids[0][-n - 1 :] != ids[1][-n - 1 :])
    sums = [sum(plain.logprobs(each)[0][-shared:]) for each in ids]
    return sums.index(max(sums)) == row["gold"]


def text_by_hand(plain: Plain, row: dict, shots: list[dict], delimiter: str) -> bool:
    solved = [s["context"].strip() + delimiter + s["continuation"] + "\n\n" for s in shots]
    asked = "".join(solved) + row["context"].strip()
    ids = plain.ids(asked + delimiter + row["continuation"])
    start = len(plain.ids(asked + delimiter.rstrip()))
    assert ids[:start] == plain.ids(asked + delimiter.rstrip())
    return all(plain.logprobs(ids)[1][start - 1 :])


HANDS = {
    "multiple_choice": choice_by_hand,
    "schema": schema_by_hand,
    "language_modeling": text_by_hand,
}


@pytest.mark.parametrize(
    "name", ["hellaswag_zeroshot", "arc_easy", "agi_eval_lsat_ar", "winograd", "jeopardy", "coqa"]
)
def test_an_accuracy_is_that_of_prompts_written_by_hand(results, trained, bundle, name):
    expected = by_hand(trained, bundle, name)
    metrics = results[f"core.{name}"].metrics
    assert metrics["acc"].value == pytest.approx(expected)
    baseline = TASKS[name].baseline
    assert metrics["centred"].value == pytest.approx((expected - baseline) / (1 - baseline))


def test_core_is_the_mean_of_all_22(results):
    assert len(results) == 23
    centred = [results[f"core.{task.name}"].metrics["centred"].value for task in CORE]
    assert results["core"].metrics["core"].value == pytest.approx(fmean(centred))
    errors = []
    for task in CORE:
        acc = results[f"core.{task.name}"].metrics["acc"].value
        errors.append(math.sqrt(acc * (1 - acc) / (COUNT - 1)) / (1 - task.baseline))
    assert 0.0 in errors, "where all answers are wrong"
    assert results["core"].metrics["core"].stderr == pytest.approx(math.hypot(*errors) / 22)
    assert len({round(value, 3) for value in centred}) > 3, "or the test compares nothing"
    assert results["core"].samples == results["core"].total
    assert results["core"].column == "core"


def test_a_limit_asks_the_same_questions_and_is_another_column(bundle, trained, results):
    asking = Asking(trained, limit=4)
    limited = CoreSuite.read(str(bundle)).evaluate(asking).tasks
    assert limited["core"].column == f"core_first{22 * 4}"
    assert limited["core.copa"].column == "core.copa_first4"
    assert (limited["core.copa"].samples, limited["core.copa"].total) == (4, COUNT)


def test_the_list_is_that_of_dclm():
    """Sums that a wrong digit would change; GPT-2's published 0.2565 was centred by them."""
    assert len({task.name for task in CORE}) == 22
    assert sum(task.shots for task in CORE) == 143
    assert sum(task.baseline for task in CORE) == pytest.approx(4.361)
    kinds = [task.kind for task in CORE]
    assert [kinds.count(kind) for kind in HANDS] == [11, 2, 9]


def test_what_is_scored_of_a_prompt():
    """The common beginning, the common ending; a token on either side, whatever the options are."""
    choice = MultipleChoice("q", ["a", "b"], 0)
    assert scored_parts(choice, [[0, 1, 2, 3], [0, 1, 4]]) == [([0, 1], [2, 3]), ([0, 1], [4])]
    assert scored_parts(choice, [[0, 1], [0, 1, 2]]) == [([0], [1]), ([0], [1, 2])]
    assert scored_parts(choice, [[0, 1], [0, 1]]) == [([0], [1]), ([0], [1])]
    schema = Schema(["a", "b"], "c", 0)
    assert scored_parts(schema, [[0, 1, 2, 3], [0, 4, 5, 2, 3]]) == [
        ([0, 1], [2, 3]),
        ([0, 4, 5], [2, 3]),
    ]
    assert scored_parts(schema, [[0, 1, 2], [0, 3, 4]]) == [([0, 1], [2]), ([0, 3], [4])]
    text = LanguageModeling("a", "b")
    assert scored_parts(text, [[0, 1, 2], [0, 1, 2, 3, 4]]) == [([0, 1, 2], [3, 4])]
    assert scored_parts(text, [[0, 1, 2], [0, 1, 5, 6]]) == [([0, 1], [5, 6])]


def test_missing_files_are_named_in_one_message(tmp_path, bundle):
    with pytest.raises(UserError) as refusal:
        CoreSuite.read(str(tmp_path))
    assert f"none of its 21 files of questions is in {tmp_path}" in str(refusal.value)
    assert "eval_bundle.zip" in str(refusal.value)
    shutil.copytree(bundle, tmp_path / "part")
    gone = tmp_path / "part" / "eval_data" / "world_knowledge" / "arc_easy.jsonl"
    gone.unlink()
    with pytest.raises(UserError, match="1 of its 21 files") as refusal:
        CoreSuite.read(str(tmp_path / "part"))
    assert str(gone) in str(refusal.value)
    assert "copa" not in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold is 2"),
        ('{"query": "q", "choices": ["a"], "gold": 0}', "'choices' holds"),
        ('{"query": "q", "choices": ["a", "b"], "gold": -1}', "'gold' holds -1"),
        ('{"query": "q", "choices": ["a", "b"], "gold": true}', "'gold' holds True"),
        ('{"query": "q", "choices": ["a", "b"]}', "'gold' is missing"),
        ('["q"]', "it holds"),
        ('{"query": "q"', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, part):
    path = tmp_path / "task.jsonl"
    path.write_text('{"query": "q", "choices": ["a", "b"], "gold": 1}\n' + line)
    with pytest.raises(UserError, match=r"task.jsonl, line 2") as refusal:
        read_questions(path, "multiple_choice")
    assert part in str(refusal.value)
