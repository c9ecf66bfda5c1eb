"""Evaluations inside a run: what they leave, and that the run is the one without them."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from questtrain.cli.main import main
from questtrain.data.text_rows import TextField
from questtrain.inference import load_run
from questtrain.inference.evaluate import in_run as in_run_module
from questtrain.inference.evaluate import score as score_module
from questtrain.inference.evaluate import tasks as tasks_module
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.bits_per_byte import read_texts
from questtrain.inference.evaluate.subject import is_packed
from questtrain.model import Llama
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.store.evaluations import evaluated_columns, read_evaluations
from tests.training_data import TINY, questtrain, rows

RUN = (*TINY, "bits=w4a4", "max_steps=10", "log_every=1", "eval_every=5", "checkpoint_every=5")
TEXT = "def value(self):\n    return self.list[name]\n" * 20


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory, text) -> Path:
    """One run without evaluations, and one with them every four steps."""
    folder = tmp_path_factory.mktemp("runs")
    base = ("train", *RUN, *corpus, f"runs_dir={folder}", "train.keep_checkpoints=9")
    assert main([*base, "name=without"]) == 0
    assert main([*base, "name=with", *tasks(text), "checkpoint_every=4"]) == 0
    return folder


@pytest.fixture(scope="module")
def quiz(tmp_path_factory) -> Path:
    """A folder with a task of lm-evaluation-harness, and its questions in CORE's format."""
    folder = tmp_path_factory.mktemp("quiz")
    words = ("return value", "self", "import os", "class", "def list(self)")
    lines = [
        json.dumps({"query": f"{a} {b}", "choices": [a, b, words[i % 5]], "gold": i % 3})
        for i, (a, b) in enumerate(itertools.permutations(words, 2))
        if words[i % 5] not in (a, b)
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    task = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "quiz.yaml").write_text(yaml.safe_dump(task))
    return folder


def tasks(text: Path, every: int = 4) -> list[str]:
    return [f"train.eval_tasks=[bpb:{text}]", f"train.eval_tasks_every={every}"]


def results(run: Path) -> dict[int, float]:
    return {step: columns["bpb.book"] for step, columns in rows(run, "evaluations")}


def test_the_run_is_bit_for_bit_the_one_without(runs):
    one, other = runs / "without", runs / "with"
    for key in ("train_loss", "grad_norm", "lr", "val_loss"):
        assert rows(one, key) == rows(other, key), key
    weights = [checkpoint_folders(run)[-1] / "model.safetensors" for run in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_results_are_in_metrics_record_and_files(runs):
    found = results(runs / "with")
    assert list(found) == [4, 8, 10]
    assert len(set(found.values())) == 3, "each is of the model at its step"
    record = json.loads((runs / "with" / "run.json").read_text())
    assert record["evaluations"]["bpb.book"] == found[10]
    evaluations = read_evaluations(runs / "with" / "evaluations")
    assert [(e.step, e.bits, e.suite) for e in evaluations] == [
        (step, "w4a4", "bpb") for step in (4, 8, 10)
    ]
    assert not json.loads((runs / "without" / "run.json").read_text())["evaluations"]


@pytest.mark.parametrize("step", [4, 10])
def test_results_are_those_of_the_checkpoint(runs, text, step):
    """Packed where a loaded run would be."""
    trained = load_run(runs / "with", "cpu", step, packed=None)
    asking = Asking(trained)
    (result,) = read_texts(str(text), TextField("text")).evaluate(asking).tasks.values()
    assert result.metrics["bpb"].value == results(runs / "with")[step]
    (evaluation,) = (e for e in read_evaluations(runs / "with" / "evaluations") if e.step == step)
    assert evaluation.packed == is_packed(trained.model)


def test_random_states_are_left_alone(runs, text, monkeypatch):
    """Whatever a suite draws."""
    trained = load_run(runs / "with", "cpu")
    trained.config.train.eval_tasks = [f"bpb:{text}"]
    evaluator = in_run_module.RunEvaluator(trained.config, trained.tokenizer)

    def draw(*_):
        torch.rand(3), np.random.rand(3), random.random()
        return Answers({})

    monkeypatch.setattr(in_run_module, "answers_of", draw)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    weights = Llama(trained.config.model, trained.config.bits, trained.config.quant).state_dict()
    torch.manual_seed(1)
    found = evaluator.evaluate(weights, trained.config, 4, torch.device("cpu"), lambda: False)
    assert found is not None
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train.eval_tasks=[bpb:/no/such/file.txt]"], "no file matches '/no/such/file.txt'"),
        (["train.eval_tasks=[core:/no/such/folder]"], "none of its 21 files"),
        (["train.eval_tasks=[bpb]"], "write bpb:FILE"),
        (["train.eval_tasks=[bpb:ROWS]"], "choose data.text_field (that of the training data, too"),
        (["train.eval_tasks=[quizz]", "train.eval_tasks_include_path=QUIZ"], "ks_include_path=FOL"),
        (["train.eval_tasks=[a]", "train.eval_tasks_datasets=/no/such"], "ks_datasets=/no/such: t"),
        (["train.eval_tasks=['hellaswag:acc']"], "is no task"),
    ],
)
def test_what_cannot_be_evaluated_is_found_before_the_run(
    corpus, tmp_path, capsys, quiz, monkeypatch, words, part
):
    """Advice names the settings of the run."""
    everything = tasks_module._manager  # which takes seconds to list
    monkeypatch.setattr(
        tasks_module, "_manager", lambda path, include_defaults=True: everything(path, False)
    )
    (tmp_path / "rows.jsonl").write_text('{"body": "text"}\n')
    places = {"ROWS": f"{tmp_path}/rows.jsonl", "QUIZ": str(quiz)}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    runs = tmp_path / "runs"
    assert main(["train", *RUN, *corpus, f"runs_dir={runs}", "name=run", *words]) == 2
    assert part in capsys.readouterr().err
    assert not list(runs.rglob("*.yaml"))
    assert not list(runs.rglob("*.jsonl"))


def test_a_run_goes_on_when_an_evaluation_fails(corpus, tmp_path, text, monkeypatch, caplog):
    """Its file has gone since; the weights are in a checkpoint, and the run is not lost."""
    path = tmp_path / "gone.txt"
    path.write_text(TEXT)
    read = in_run_module.read_suites

    def read_and_remove(*arguments):
        found = read(*arguments)
        path.unlink()
        return found

    monkeypatch.setattr(in_run_module, "read_suites", read_and_remove)
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", *tasks(path)]
    with caplog.at_level(logging.WARNING):
        assert main(["train", *words]) == 0
    assert "the evaluation at step 4 failed, and the run goes on" in caplog.text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"


def test_a_signal_during_an_evaluation_saves_the_step_and_it_is_made_up(
    corpus, tmp_path, runs, text, monkeypatch
):
    """It comes at step 4, where no checkpoint is due; going on begins with the evaluation."""
    real = score_module.Scorer.score

    def score(self, pairs, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, pairs, *rest)

    words = ["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", *tasks(text)]
    with monkeypatch.context() as patch:
        patch.setattr(score_module.Scorer, "score", score)
        assert main(words) == 128 + signal.SIGTERM
    run = tmp_path / "run"
    assert [folder.name for folder in checkpoint_folders(run)] == ["step_00000004"]
    assert not results(run)
    assert main(words) == 0
    assert results(run) == results(runs / "with")
    assert rows(run, "train_loss") == rows(runs / "with", "train_loss")


def test_tasks_of_the_harness_and_answers_give_what_the_command_gives(runs, quiz, tmp_path, corpus):
    """The same columns in the run and of its checkpoint; the bits of right answers are those of the
    same questions in a file."""
    words = [f"train.eval_tasks=[quiz,'quiz:bpb','bpb:{quiz}/questions.jsonl']"]
    words += [f"train.eval_tasks_include_path={quiz}", "train.eval_tasks_every=4"]
    base = ["train", *RUN, *corpus, f"runs_dir={tmp_path}", "name=run", "checkpoint_every=4"]
    assert main([*base, *words, "train.keep_checkpoints=9"]) == 0
    run = tmp_path / "run"
    assert rows(run, "train_loss") == rows(runs / "without", "train_loss")
    found = dict(rows(run, "evaluations"))
    assert list(found) == [4, 8, 10]
    for step in (4, 10):
        command = ["eval", f"run={run}", f"include_path={quiz}", f"step={step}", "device=cpu"]
        assert main([*command, "tasks=quiz"]) == 0
        assert main([*command, "tasks=quiz", "suite=bpb"]) == 0
        own = evaluated_columns(run, step)
        assert set(own) == {
            f"{name}{error}"
            for name in ("quiz.acc", "bpb.quiz", "bpb.questions")
            for error in ("", "_stderr")
        }
        assert own == found[step]
        assert own["bpb.quiz"] == pytest.approx(own["bpb.questions"], rel=1e-6)
    assert json.loads((run / "run.json").read_text())["evaluations"] == found[10]


def test_ranks_wait_for_the_one_that_evaluates(corpus, tmp_path, text, runs):
    words = [*RUN, *corpus, f"runs_dir={tmp_path}", "name=run", *tasks(text), "gpus=2"]
    result = questtrain("train", *words)
    assert result.returncode == 0, result.stderr
    found = results(tmp_path / "run")
    assert list(found) == [4, 8, 10]
    assert found == pytest.approx(results(runs / "with"), rel=1e-3)
