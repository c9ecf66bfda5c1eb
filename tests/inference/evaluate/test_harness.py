"""The harness asks our model and its own of an export: the same answers, document by document."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.drawn import SEED
from questtrain.inference.evaluate.tasks import load_tasks
from questtrain.inference.load import TrainedModel, load_run
from questtrain.store.evaluations import TaskResult

lm_eval = pytest.importorskip("lm_eval")

from questtrain.inference.evaluate.adapter import HarnessModel  # noqa: E402
from questtrain.inference.evaluate.harness import ask, set_examples  # noqa: E402

Trained = Callable[[str], Path]
TASKS = ["endings", "texts", "answers"]


def by_document(samples: list[dict[str, Any]]) -> list[Any]:
    """The model's answers, flat, in the order of the documents."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [answer for sample in ordered for group in sample["resps"] for answer in group]


def asked(model: TrainedModel, folder: Path, names: list[str], **how: Any) -> Answers:
    return ask(load_tasks(names, folder, folder), Asking(model, samples=True, **how))


def documents(answers: Answers, task: str) -> list[Any]:
    samples = [json.loads(line) for line in (answers.samples or "").splitlines()]
    return by_document([sample for sample in samples if sample["task"] == task])


@pytest.fixture(scope="module")
def model(trained: Trained) -> TrainedModel:
    return load_run(trained("w4a4"), "cpu", packed=True)


@pytest.fixture(scope="module", params=["bf16", "w4a16", "w4a4"])
def pair(request, trained: Trained, tmp_path_factory) -> tuple[TrainedModel, Any]:
    """Our model, packed where its weights are quantized, and transformers' of its export."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import questtrain.hf  # noqa: F401  # the layers of w4a4

    run = trained(request.param)
    output = str(tmp_path_factory.mktemp("hf") / request.param)
    words = ["export", f"run={run}", "format=hf", f"output={output}", "verify=false"]
    assert main(words) == 0
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    theirs = HFLM(model, tokenizer=tokenizer, device="cpu", batch_size=4, max_length=64)
    return load_run(run, "cpu", packed=request.param != "bf16"), theirs


def test_the_same_answers_as_of_an_export_in_transformers(pair, task_folder):
    """Choices (with white space at the border, without context, longer than the trained length) and
    generated texts, by both evaluators' defaults; documents that are scored whole, where HFLM is
    told to add BOS once. Sums of log-likelihoods within 1e-3."""
    ours, theirs = pair
    answers = asked(ours, task_folder, TASKS)
    loaded = load_tasks(TASKS, task_folder, task_folder)
    for task in loaded.tasks.values():
        set_examples(task, None, None, SEED)
    for names in (["endings", "answers"], ["texts"]):
        theirs.add_bos_token = names != ["texts"]
        tasks = {"tasks": {name: loaded.tasks[name] for name in names}}
        found = lm_eval.evaluate(theirs, tasks, bootstrap_iters=100)
        for name in names:
            expected, got = by_document(found["samples"][name]), documents(answers, name)
            assert len(got) == len(expected) >= 6
            if name == "endings":
                logprobs, greedy = zip(*got, strict=True)
                expected_logprobs, expected_greedy = zip(*expected, strict=True)
                assert greedy == expected_greedy
                got, expected = [*logprobs], [*expected_logprobs]
            assert got == (expected if name == "answers" else pytest.approx(expected, abs=1e-3))
            assert_same_result(answers.tasks[name], found["results"][name])
    assert len(set(documents(answers, "answers"))) > 1


def assert_same_result(ours: TaskResult, theirs: dict[str, Any]) -> None:
    for metric, value in ours.metrics.items():
        assert value.value == pytest.approx(theirs[f"{metric},none"], rel=1e-4)
        error = theirs[f"{metric}_stderr,none"]
        assert value.stderr == (None if error == "N/A" else pytest.approx(error))


def test_examples_before_a_question_are_those_of_simple_evaluate(model, task_folder, monkeypatch):
    """The same number, drawn with the same seed: the same prompts, by their hashes."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds
    from lm_eval.tasks import TaskManager

    hashes = {}
    for seed in (None, 7):
        answers = asked(model, task_folder, ["endings"], num_fewshot=2, seed=seed)
        samples = [json.loads(line) for line in (answers.samples or "").splitlines()]
        hashes[seed] = [sample["prompt_hash"] for sample in samples]
    loaded = load_tasks(["endings"], task_folder, task_folder)
    found = lm_eval.simple_evaluate(
        HarnessModel(model, None, SEED),
        tasks=[*loaded.tasks.values()],
        num_fewshot=2,
        task_manager=TaskManager(include_defaults=False),
    )
    assert hashes[None] == [sample["prompt_hash"] for sample in found["samples"]["endings"]]
    assert hashes[7] != hashes[None]
    assert answers.tasks["endings"].column == "endings_2shot"
    assert answers.tasks["endings"].num_fewshot == 2


def test_tasks_can_be_asked_again_in_another_way(model, task_folder):
    """The first does not change what the task's own number of examples is."""
    loaded = load_tasks(["endings"], task_folder, task_folder)
    columns = [
        ask(loaded, Asking(model, num_fewshot=shots, limit=3)).tasks["endings"].column
        for shots in (None, 2, 2, None)
    ]
    own, other = "endings_first3", "endings_2shot_first3"
    assert columns == [own, other, other, own]


def test_a_group_stands_for_its_tasks(model, task_folder):
    answers = asked(model, task_folder, ["both", "texts"])
    assert list(answers.tasks) == ["both", "texts"]
    both = answers.tasks["both"]
    assert (both.samples, both.total, both.version) == (32, 32, "1.0")
    alone = asked(model, task_folder, ["endings"]).tasks["endings"]
    assert list(alone.metrics) == ["acc_norm", "acc"], "what is quoted leads"
    assert both.metrics["acc"].value == alone.metrics["acc"].value
    assert alone.version == "2.0"


@pytest.mark.parametrize(("limit", "samples"), [(5, 5), (0.25, 4), (16, 16), (99, 16)])
def test_a_part_of_a_task_has_another_column(model, task_folder, limit, samples):
    """Not where the limit leaves the whole."""
    result = asked(model, task_folder, ["endings"], limit=limit).tasks["endings"]
    assert (result.samples, result.total) == (samples, 16)
    assert result.column == ("endings" if samples == 16 else f"endings_first{samples}")


def test_random_numbers_go_on_as_if_nothing_had_been_asked(model, task_folder):
    """A run evaluates in between, and trains as without."""

    def drawn() -> list[float]:
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    asked(model, task_folder, ["endings"], limit=2, seed=3)
    assert drawn() == expected


def test_documents_that_make_no_question(model, task_folder, tmp_path):
    """Data of another form than the task's template: the harness looks when it loads the task, and
    at each document, before the model is asked."""
    shutil.copy(task_folder / "endings.yaml", tmp_path)
    text = (task_folder / "endings.jsonl").read_text()
    for count, message in ((-1, "task endings cannot be loaded"), (1, "cannot be made questions")):
        (tmp_path / "endings.jsonl").write_text(text.replace('"endings": [', '"ends": [', count))
        with pytest.raises(UserError, match=message):
            asked(model, tmp_path, ["endings"])


def test_a_task_that_wants_beams_is_refused(model, task_folder, tmp_path):
    for file in task_folder.glob("answers.*"):
        (tmp_path / file.name).write_text(
            file.read_text().replace("until:", "num_beams: 4\n  until:")
        )
    with pytest.raises(UserError, match="answers asks for answers with num_beams=4; what is known"):
        asked(model, tmp_path, ["answers"])
