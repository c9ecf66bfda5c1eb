"""Bits per byte of the right answers to the harness' tasks, each by its own prompt through a plain
fp64 model."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pytest
import yaml

from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Asking
from questtrain.inference.evaluate.harness_tasks import HarnessAnswers, HarnessTasks
from questtrain.inference.evaluate.tasks import load_tasks
from tests.inference.evaluate.models import Plain, opinionated_model, tokenizer_of_settings


@pytest.fixture(scope="module")
def model(compose, corpus):
    return opinionated_model(compose, tokenizer_of_settings(corpus), length=256)


def answers_to(model, folder, *names, **how):
    tasks = HarnessAnswers(load_tasks(names, folder, folder))
    return tasks.evaluate(Asking(model, **how)).tasks


def bits(plain: Plain, context: str, answer: str) -> float:
    """Of the answer, with the white space before it, a byte."""
    kept = context.rstrip()
    asked, whole = plain.ids(kept), plain.ids(context + answer)
    scored = plain.logprobs(whole)[0][len(asked) - 1 :]
    return -math.fsum(scored) / math.log(2) / len((context + answer)[len(kept) :].encode())


def rows_of(folder, name="endings"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_right_answers_of_choices(model, task_folder):
    plain = Plain(model)
    values = [
        bits(plain, row["context"], " " + row["endings"][row["label"]])
        for row in rows_of(task_folder)
    ]
    result = answers_to(model, task_folder, "endings")["endings:bpb"]
    assert result.metrics["bpb"].value == pytest.approx(fmean(values), rel=1e-5)
    count = len(values)
    assert (result.column, result.samples, result.total) == ("bpb.endings", count, count)
    part = answers_to(model, task_folder, "endings", limit=5.5 / count)["endings:bpb"]
    assert part.metrics["bpb"].value == pytest.approx(fmean(values[:6]), rel=1e-5)
    assert (part.column, part.samples, part.total) == ("bpb.endings_first6", 6, count)


def test_a_groups_are_those_of_all_its_questions(model, task_folder):
    found = answers_to(model, task_folder, "both", "endings")
    assert found["both:bpb"].total == 2 * found["endings:bpb"].total
    values = [found[f"{name}:bpb"].metrics["bpb"].value for name in ("both", "endings")]
    assert values[0] == pytest.approx(values[1])


def test_where_contexts_are_chosen_from_the_right_one_counts(model, task_folder, tmp_path):
    """As Winogrande's: one ending, several beginnings."""
    rows = [
        {"starts": row["endings"][:2], "right": row["label"] % 2, "end": row["context"][:30] + "x"}
        for row in rows_of(task_folder)[:5]
    ]
    (tmp_path / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = yaml.safe_load((task_folder / "endings.yaml").read_text()) | {
        "task": "starts",
        "dataset_kwargs": {"data_files": {"validation": "starts.jsonl"}},
        "doc_to_text": "right",
        "doc_to_target": "end",
        "doc_to_choice": "starts",
    }
    (tmp_path / "starts.yaml").write_text(yaml.safe_dump(task))
    plain = Plain(model)
    values = [bits(plain, row["starts"][row["right"]], " " + row["end"]) for row in rows]
    result = answers_to(model, tmp_path, "starts")["starts:bpb"]
    assert result.metrics["bpb"].value == pytest.approx(fmean(values), rel=1e-5)


@pytest.mark.parametrize("name", ["texts", "answers"])
def test_a_task_without_choices_is_refused(task_folder, name):
    with pytest.raises(UserError, match=f"{name}:bpb is the bits per byte of the one right answer"):
        HarnessAnswers(load_tasks([name], task_folder, task_folder))


def test_a_document_without_a_right_answer_is_refused(task_folder, tmp_path):
    row = rows_of(task_folder)[0] | {"label": -1}
    (tmp_path / "endings.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "endings.yaml").write_text((task_folder / "endings.yaml").read_text())
    with pytest.raises(UserError, match="1 of 1 documents name no right answer"):
        HarnessAnswers(load_tasks(["endings"], tmp_path, tmp_path))


def test_a_template_that_does_not_fit_is_found_before_a_model_is_there(task_folder, tmp_path):
    task = yaml.safe_load((task_folder / "endings.yaml").read_text())
    task["doc_to_choice"] = "{{nothing}}"
    (tmp_path / "endings.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "endings.jsonl").write_text((task_folder / "endings.jsonl").read_text())
    with pytest.raises(UserError):
        HarnessTasks(load_tasks(["endings"], tmp_path, tmp_path))


def test_tasks_can_be_asked_again(model, task_folder):
    """A run asks them at several steps: the same model answers the same."""
    tasks = HarnessTasks(load_tasks(["endings", "answers"], task_folder, task_folder))
    asking = Asking(model, limit=5, num_fewshot=2)
    first = tasks.evaluate(asking).tasks
    assert first == tasks.evaluate(asking).tasks
    assert first["endings"].column == "endings_2shot_first5"
    assert tasks.evaluate(Asking(model)).tasks["endings"].column == "endings"
