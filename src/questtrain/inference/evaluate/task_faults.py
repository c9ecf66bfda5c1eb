"""What went wrong in a task of lm-evaluation-harness, in the words of its YAML file.

The harness raises what Python does: ``KeyError: 'tset'`` for a split that the data does not have.
The frames of such an error know the task, its data and the document at hand.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from questtrain.errors import suggestion

SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
UNKNOWN_KEY = re.compile(r"TaskConfig\.__init__\(\) got an unexpected keyword argument '(.+)'")
UNDEFINED = re.compile(r"'(.+)' is undefined")


def said(error: BaseException) -> str:
    """An error of somebody else in one line: which key of the task is at fault, and what it may
    name, where that is known."""
    for fault in (_unknown_key, _unknown_split, _unknown_column, _unknown_metric):
        if (known := fault(error)) is not None:
            return known
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'without a word'}"


def _unknown_key(error: BaseException) -> str | None:
    found = UNKNOWN_KEY.fullmatch(str(error))
    if found is None:
        return None
    from lm_eval.config.task import TaskConfig

    keys = [each.name for each in fields(TaskConfig)]
    return f"{found[1]!r} is no key of a task.{_choices(found[1], keys)}"


def _unknown_split(error: BaseException) -> str | None:
    if not isinstance(error, KeyError):
        return None
    for function, local in _frames(error):
        task: Any = local.get("self")
        splits = getattr(task, "dataset", None)
        if not function.endswith("_docs") or not isinstance(splits, Mapping):
            continue
        for key in SPLITS:
            if (name := task.get_config(key)) == error.args[0] and name not in splits:
                return f"{key}: its data has no split {name!r}.{_choices(name, splits)}"
    return None


def _unknown_column(error: BaseException) -> str | None:
    found = UNDEFINED.fullmatch(str(error))
    if found is None:
        return None
    for function, local in _frames(error):
        document = local.get("doc")
        if function.startswith("doc_to_") and isinstance(document, Mapping):
            place = f"{function}: a document has no column {found[1]!r}."
            return place + _choices(found[1], map(str, document))
    return None


def _unknown_metric(error: BaseException) -> str | None:
    """The harness looks an aggregation up that a metric does not have, ``None``."""
    if not isinstance(error, KeyError) or error.args[0] is not None:
        return None
    for function, local in _frames(error):
        name: Any = local.get("metric_name")
        task: Any = local.get("self")
        if function != "__init__" or not isinstance(name, str):
            continue
        if getattr(task, "_metric_fn_list", {}).get(name) or task.config.process_results:
            return f"metric_list: the metric {name!r} needs an `aggregation` beside it, as `mean`."
        from lm_eval.api.registry import metric_registry

        return f"metric_list: there is no metric {name!r}.{_choices(name, sorted(metric_registry))}"
    return None


def _choices(wrong: str, choices: Iterable[str]) -> str:
    """`` There are a, b. Did you mean 'a'?``"""
    names = list(choices)
    return f" There are {', '.join(names)}.{suggestion(wrong, names)}"


def _frames(error: BaseException) -> Iterator[tuple[str, dict[str, Any]]]:
    """The functions that an error came through, and their variables, the innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        yield frame.f_code.co_name, frame.f_locals
