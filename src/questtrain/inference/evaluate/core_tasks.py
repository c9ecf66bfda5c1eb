"""The 22 tasks of CORE, and where their questions come from.

CORE is the mean centred accuracy over the tasks that DCLM found to vary least between runs (Li et
al., "DataComp-LM", 2024; arXiv 2406.11794; the list "low_variance_datasets" of its repository).
Names, few-shot counts, delimiters and random baselines are those of DCLM's ``eval/heavy.yaml`` and
``eval/eval_meta_data_v1.csv``; nanochat publishes the same tasks as one archive, whose layout the
file names follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["multiple_choice", "schema", "language_modeling"]

BUNDLE = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
"""The archive of the questions, 162 MB; those of DCLM itself have the same names."""
BUNDLE_DATA = "eval_data"
"""The folder in the archive that the names of files start from."""
DEFAULT_FOLDER = "~/.cache/questtrain/eval_bundle"

SPACE, ANSWER = " ", "\nAnswer: "


@dataclass(frozen=True)
class CoreTask:
    """``file`` is below the bundle's `BUNDLE_DATA`, ``shots`` the examples before a question,
    ``baseline`` the accuracy of guessing, and ``delimiter`` stands between question and answer."""

    name: str
    file: str
    kind: Kind
    shots: int
    baseline: float
    delimiter: str = SPACE

    def centred(self, accuracy: float) -> float:
        """0 for guessing, 1 for all right; below 0 is worse than guessing."""
        return (accuracy - self.baseline) / (1 - self.baseline)


def _choice(
    name: str, folder: str, shots: int, baseline: float, delimiter: str = SPACE, file: str = ""
) -> CoreTask:
    path = f"{folder}/{file or name}.jsonl"
    return CoreTask(name, path, "multiple_choice", shots, baseline, delimiter)


def _schema(name: str, file: str) -> CoreTask:
    return CoreTask(name, f"language_understanding/{file}.jsonl", "schema", 0, 0.5)


def _text(name: str, folder: str, shots: int, delimiter: str = SPACE, file: str = "") -> CoreTask:
    path = f"{folder}/{file or name}.jsonl"
    return CoreTask(name, path, "language_modeling", shots, 0.0, delimiter)


_LANGUAGE, _KNOWLEDGE = "language_understanding", "world_knowledge"
_SENSE, _SYMBOLS = "commonsense_reasoning", "symbolic_problem_solving"
_READING = "reading_comprehension"

CORE = (
    _choice("hellaswag_zeroshot", _LANGUAGE, 0, 0.25, file="hellaswag"),
    _text("jeopardy", _KNOWLEDGE, 10, ANSWER, file="jeopardy_all"),
    _text("bigbench_qa_wikidata", _KNOWLEDGE, 10),
    _choice("arc_easy", _KNOWLEDGE, 10, 0.25, ANSWER),
    _choice("arc_challenge", _KNOWLEDGE, 10, 0.25, ANSWER),
    _choice("copa", _SENSE, 0, 0.5),
    _choice("commonsense_qa", _SENSE, 10, 0.2),
    _choice("piqa", _SENSE, 10, 0.5, ANSWER),
    _choice("openbook_qa", _SENSE, 0, 0.25),
    _text("lambada_openai", _LANGUAGE, 0),
    _choice("hellaswag", _LANGUAGE, 10, 0.25),
    _schema("winograd", "winograd_wsc"),
    _schema("winogrande", "winogrande"),
    _text("bigbench_dyck_languages", _SYMBOLS, 10),
    _choice("agi_eval_lsat_ar", _SYMBOLS, 3, 0.2),
    _text("bigbench_cs_algorithms", _SYMBOLS, 10),
    _text("bigbench_operators", _SYMBOLS, 10),
    _text("bigbench_repeat_copy_logic", _SYMBOLS, 10),
    _text("squad", _READING, 10),
    _text("coqa", _READING, 0),
    _choice("boolq", _READING, 10, 0.62, ANSWER),
    _choice("bigbench_language_identification", _LANGUAGE, 10, 0.091),
)
"""In the order of DCLM's list."""
