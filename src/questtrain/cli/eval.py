"""``questtrain eval``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from questtrain.cli.arguments import own_config, parse_arguments, refuse_options
from questtrain.cli.help_page import own_settings
from questtrain.cli.output import number_text, plain_table, print_json
from questtrain.config.eval_tasks import EvalTask, parse_eval_tasks, suite_name
from questtrain.config.model_use import PACKED, AtStep, Packed
from questtrain.config.ranges import SEED, SIZE, Choices, Interval
from questtrain.config.schema import DEVICE
from questtrain.errors import UserError, suggestion
from questtrain.store.evaluations import Evaluation
from questtrain.store.files import no_such_folder
from questtrain.sweep.console import console

if TYPE_CHECKING:
    from questtrain.inference.evaluate.subject import Subject

HELP = """usage: questtrain eval run=DIR tasks=TASK,… [key=value …] [--json]
       questtrain eval run=DIR suite=bpb [files=FILE] [tasks=TASK,…] [key=value …]
       questtrain eval run=DIR suite=core [bundle=FOLDER] [key=value …]
       questtrain eval export=DIR …
       questtrain eval --tasks [PATTERN] [include_path=FOLDER] [--json]

Puts tasks of lm-evaluation-harness to a trained model, as it was trained: its packed weights, its
length, its documents' BOS; measures bits per byte of files and of right answers (suite=bpb), or the
22 tasks of CORE (suite=core). The results are printed, kept in DIR/evaluations/, and stand in the
table of runs (docs/eval.md, which also tells how a machine without network gets the data).

{settings}

  --tasks        the names of all tasks, or of those like PATTERN (arc*)
  --json         print the evaluation (or the names) as JSON

  questtrain eval run=runs/first tasks=hellaswag,arc_easy limit=100
  questtrain eval run=runs/first suite=bpb files='docs/**/*.md' tasks=arc_easy
  questtrain eval run=runs/first suite=core bundle=eval_bundle
"""


@dataclass
class EvalConfig:
    """What is evaluated, by which tasks, and how."""

    run: Annotated[
        str | None, "the run's folder, as `questtrain train` printed it, or a packed export of it"
    ]
    export: Annotated[str | None, "the same, of an export"]
    tasks: Annotated[
        str | None,
        "names of tasks, groups or YAML files, with commas; see --tasks; also TASK:bpb, bpb:FILE,"
        " core",
    ]
    suite: Annotated[
        str,
        Choices(("lm-eval", "bpb", "core")),
        "lm-eval: the tasks' own metrics; bpb: bits per byte of their right answers, and of files;"
        " core: CORE",
    ]
    files: Annotated[
        list[str], "suite=bpb: paths or patterns of texts, or of JSON lines of questions"
    ]
    text_field: Annotated[str, "where the text of a file's row is; a.b is nested"]
    stride: Annotated[
        int | None,
        Interval(SIZE),
        "tokens that windows over long texts move by; null: half the trained length",
    ]
    bundle: Annotated[
        str | None,
        "suite=core: the folder of the unpacked bundle; null: ~/.cache/questtrain/eval_bundle",
    ]
    limit: Annotated[
        float | None,
        Interval("(0, 2^53]"),
        "only so many documents of each task, a share of them below 1; null: all",
    ]
    num_fewshot: Annotated[
        int | None,
        Interval("[0, 2^31)"),
        "examples before each question; null: as many as the task says",
    ]
    seed: Annotated[
        int | None, Interval(SEED), "of all that is drawn; null: the harness' own, 0 and 1234"
    ]
    device: Annotated[str, DEVICE, "what it runs on"]
    step: AtStep
    packed: Packed
    batch_tokens: Annotated[
        int | None,
        Interval(SIZE),
        "tokens of a batch, padding included; null: 32,768 on a GPU, 4,096 on a CPU",
    ]
    include_path: Annotated[str | None, "a folder with YAML files of more tasks"]
    datasets: Annotated[
        str | None, "a folder with the tasks' data: in OWNER/NAME the dataset of that name"
    ]
    output: Annotated[str | None, "the folder for the results; null: DIR/evaluations"]
    bootstrap: Annotated[
        int, Interval("[0, 2^31)"), "draws for the standard error of what is no mean"
    ]
    samples: Annotated[bool, "keep every question and answer, too, as JSON lines"]


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain eval --help`` prints."""
    return HELP.replace("{settings}", own_settings(EvalConfig, "eval"))


def main(words: Sequence[str]) -> int:
    """Evaluate, keep and print the results."""
    if "--tasks" in words:
        return _list(words)
    arguments = parse_arguments(words)
    config = own_config(arguments, "eval", EvalConfig)
    if config is None:
        return 0
    folder = _folder(config)
    subject, evaluation, samples = _evaluate(config, folder)
    path = subject.record(evaluation, samples)
    if arguments.json:
        print_json({**asdict(evaluation), "file": str(path)})
    else:
        show(evaluation)
        print(f"\n{path}")
    return 0


def _folder(config: EvalConfig) -> str:
    """The run or export; UserError unless there is exactly one."""
    given = [folder for folder in (config.run, config.export) if folder is not None]
    if len(given) != 1:
        reason = "both were given" if given else "neither was given"
        raise UserError(f"eval takes run=DIR or export=DIR, and {reason}.")
    if not Path(given[0]).expanduser().is_dir():
        name = "run" if config.export is None else "export"
        raise no_such_folder(f"{name}={given[0]}", Path(given[0]).expanduser())
    return given[0]


def _evaluate(config: EvalConfig, folder: str) -> tuple[Subject, Evaluation, str | None]:
    """The tasks come first: a model takes longer to load than a wrong name to be seen."""
    from questtrain.data.text_rows import TextField
    from questtrain.inference.evaluate.asking import Asking, answers_of
    from questtrain.inference.evaluate.subject import Subject
    from questtrain.inference.evaluate.suites import Places, read_suites

    tasks = wanted(config)
    if config.limit is not None and config.limit > 1 and not config.limit.is_integer():
        raise UserError(f"limit={config.limit:g} is no number of documents, and no share below 1.")
    field = TextField(config.text_field, setting="text_field")
    places = Places.of(config.include_path, config.datasets, field)
    ready = read_suites(tasks, places)
    how = (config.device, config.step, PACKED[config.packed], config.output)
    subject = Subject.open(folder, *how)
    asking = Asking(
        subject.trained,
        limit=config.limit,
        num_fewshot=config.num_fewshot,
        seed=config.seed,
        batch_tokens=config.batch_tokens,
        bootstrap=config.bootstrap,
        samples=config.samples,
        stride=config.stride,
    )
    started = time.monotonic()
    answers = answers_of(ready, asking)
    seconds = time.monotonic() - started
    evaluation = subject.evaluation(
        suite_name(tasks), answers.tasks, seconds, config.limit, config.seed, answers.versions
    )
    return subject, evaluation, answers.samples or None


def wanted(config: EvalConfig) -> list[EvalTask]:
    """What is evaluated; UserError where the settings say nothing, or do not go together."""
    words = [word for word in (config.tasks or "").split(",") if word.strip()]
    tasks = parse_eval_tasks(words, "tasks")
    if config.suite != "bpb" and config.files:
        raise UserError("files=… are for suite=bpb.")
    if config.suite != "core" and config.bundle is not None:
        raise UserError("bundle=… is for suite=core.")
    if config.suite == "bpb":
        tasks = [EvalTask("answers", t.name) if t.suite == "lm-eval" else t for t in tasks]
        tasks += [EvalTask("bpb", pattern) for pattern in config.files]
    elif config.suite == "core":
        tasks = [EvalTask("core", config.bundle or ""), *tasks]
    if not tasks:
        needs = "files=FILE or tasks=TASK" if config.suite == "bpb" else "tasks=TASK"
        raise UserError(
            f"nothing to evaluate on: {needs} says what; `questtrain eval --tasks` lists the tasks"
            " of lm-evaluation-harness."
        )
    _check_settings(config, tasks)
    return list(dict.fromkeys(tasks))


def _check_settings(config: EvalConfig, tasks: Sequence[EvalTask]) -> None:
    """UserError for a setting that changes nothing in what is evaluated."""
    suites = {task.suite for task in tasks}
    if config.stride is not None and "bpb" not in suites:
        raise UserError(f"stride={config.stride} is of texts (suite=bpb files=…): leave it out.")
    if config.num_fewshot is not None and not suites & {"lm-eval", "answers"}:
        raise UserError(
            f"num_fewshot={config.num_fewshot} is of tasks of lm-evaluation-harness, and none is"
            " evaluated: leave it out."
        )


def show(evaluation: Evaluation) -> None:
    """Print the results as a table."""
    weights = "packed" if evaluation.packed else "values"
    print(
        f"{evaluation.source}, step {evaluation.step:,}, {evaluation.bits} ({weights}) on"
        f" {evaluation.device}: {evaluation.suite}, {evaluation.seconds:.1f} s\n"
    )
    table = plain_table(["task", "metric"], ("value", "± error", "shots", "documents"))
    for name, result in evaluation.tasks.items():
        is_whole = result.samples == result.total
        documents = f"{result.samples:,}" if is_whole else f"{result.samples:,} of {result.total:,}"
        shots = "" if result.num_fewshot is None else str(result.num_fewshot)
        for metric, found in result.metrics.items():
            value, error = _number(found.value), _number(found.stderr)
            table.add_row(name, metric, value, error, shots, documents)
            name = shots = documents = ""
    console().print(table)
    if evaluation.limit is not None:
        print("\nlimit= was given: columns of their own in the table of runs hold these results.")


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)


def _list(words: Sequence[str]) -> int:
    """The names of tasks; UserError for a word that --tasks does not take."""
    options = [word for word in words if word not in ("--tasks", "--json")]
    refuse_options(options, "--tasks", "--json")
    rest = [word for word in words if not word.startswith("-")]
    own = [word.partition("=")[2] for word in rest if word.startswith("include_path=")]
    patterns = [word for word in rest if "=" not in word]
    if len(own) + len(patterns) < len(rest) or len(patterns) > 1 or len(own) > 1:
        raise UserError("--tasks takes one pattern, such as arc*, and include_path=FOLDER.")

    from questtrain.inference.evaluate.suites import folder_of
    from questtrain.inference.evaluate.tasks import task_names

    names = task_names(folder_of(own[0]) if own else None)
    found = [name for name in names if fnmatch(name, patterns[0])] if patterns else names
    if not found:
        raise UserError(f"no task is called like {patterns[0]!r}.{suggestion(patterns[0], names)}")
    if "--json" in words:
        print_json(found)
    else:
        print("\n".join(found))
    return 0
