"""The tasks of lm-evaluation-harness: found by name, with their data, or a message what is missing.

The harness knows its tasks from YAML files, and users add theirs (``include_path``). A task's data
is a dataset of the Hugging Face hub. Looked for are, in this order: the folder ``datasets``, in
which ``OWNER/NAME`` is a copy of the repository; the cache of ``datasets``; the hub, after one look
whether it is there. `questtrain.data.hub` says why: without that look an unreachable hub costs half
a minute a task.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from questtrain.config.yaml_fault import yaml_fault
from questtrain.data.hub import HubFileMissingError, check_hub
from questtrain.errors import UserError, suggestion
from questtrain.inference.evaluate.drawn import drawn_with
from questtrain.inference.evaluate.task_faults import said
from questtrain.inference.evaluate.task_files import check_task_file, first_damaged
from questtrain.store.files import no_such_folder

YAML = (".yaml", ".yml")
"""How the name of a task file ends."""


@dataclass
class LoadedTasks:
    """``tasks`` and ``groups`` are the harness' own, by name, all that are in what was named;
    ``reported`` whose results count, each with its single tasks: a group that has a result of its
    own stands for its tasks. ``own_shots`` are the examples before a question that a task's YAML
    asks for, if it says so."""

    tasks: dict[str, Any] = field(default_factory=dict)
    own_shots: dict[str, int | None] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, list[str]] = field(default_factory=dict)

    def add(self, loaded: Any) -> None:
        """What a task manager made of one name."""
        tasks, groups = loaded["tasks"], loaded.get("groups", {})
        self.tasks |= tasks
        self.own_shots |= {name: task.get_config("num_fewshot") for name, task in tasks.items()}
        self.groups |= groups
        inside = {child for group in groups.values() for child in group.child_names}
        for name in (*groups, *tasks):
            if name not in inside:
                self._report(name, groups)

    def _report(self, name: str, groups: dict[str, Any]) -> None:
        group = groups.get(name)
        if group is None:
            self.reported[name] = [name]
        elif group.has_aggregation:
            self.reported[name] = [task.task_name for task in group.get_all_tasks()]
        else:
            for child in group.child_names:
                self._report(child, groups)


def require_harness() -> None:
    """UserError where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError(
            "tasks are asked by lm-evaluation-harness, which is not installed: pip install"
            " '.[eval]' in the folder of questtrain's sources."
        )


def task_names(include_path: Path | None = None) -> list[str]:
    """All tasks, groups and tags that there are, sorted."""
    require_harness()
    _require_folders("", include_path=include_path)
    names: list[str] = _manager(include_path).all_tasks
    return names


def load_tasks(
    names: Sequence[str],
    include_path: Path | None = None,
    datasets: Path | None = None,
    prefix: str = "",
) -> LoadedTasks:
    """The tasks of those names (of groups and tags, and paths of YAML files, too) with their data.
    ``prefix`` is that of the settings ``include_path`` and ``datasets`` in advice.

    UserError for a name that is none, data that is not there, a task that cannot be loaded or is
    not for a language model.
    """
    require_harness()
    _require_folders(prefix, include_path=include_path, datasets=datasets)
    manager = _manager_of(names, include_path, _alone(names))
    found = LoadedTasks()
    for name in dict.fromkeys(names):
        is_file = name not in manager.task_index and Path(name).is_file()
        if not is_file and name not in manager.task_index:
            raise _unknown_task(name, manager.all_tasks, include_path, prefix)
        if is_file:
            check_task_file(Path(name))
        spec = str(Path(name).resolve()) if is_file else name
        with drawn_with(None):
            found.add(_load(partial(manager.load, [spec]), name, datasets, prefix))
    for name, task in found.tasks.items():
        _refuse(name, task)
    return found


def _require_folders(prefix: str, **folders: Path | None) -> None:
    """UserError for a setting whose folder is not there."""
    for setting, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise no_such_folder(f"{prefix}{setting}={folder}", folder)


def _manager(include_path: Path | None, include_defaults: bool = True) -> Any:
    from lm_eval.tasks import TaskManager

    own = None if include_path is None else str(include_path)
    return TaskManager(include_path=own, include_defaults=include_defaults)


def _alone(names: Sequence[str]) -> set[str]:
    """The paths of YAML files that need no other task; UserError for a path where no task is. They
    are read before the harness' thousands of files."""
    alone = set()
    for name in names:
        path = Path(name)
        is_yaml = name.endswith(YAML)
        if is_yaml and not path.is_file():
            raise _no_task_file(name)
        if (is_yaml or "/" in name) and path.is_file() and check_task_file(path):
            alone.add(name)
    return alone


def _manager_of(names: Sequence[str], include_path: Path | None, alone: set[str]) -> Any:
    """One that knows the names: the harness' own YAML files, which take seconds to read, only where
    the user's (those in a folder, and files that stand ``alone``) do not have them all."""
    others = [name for name in names if name not in alone]
    if include_path is not None or not others:
        own = _manager(include_path, include_defaults=False)
        if all(_has(own.task_index, name) for name in others):
            return own
    return _manager(include_path)


def _has(index: Mapping[str, Any], name: str) -> bool:
    """Whether an index knows a task, or a group and all that is in it."""
    if name not in index:
        return False
    inside = (index[name].cfg or {}).get("task")
    members = inside if isinstance(inside, list) else []
    names = [each if isinstance(each, str) else str(each.get("task")) for each in members]
    return all(_has(index, each) for each in names)


def _unknown_task(
    name: str, known: Sequence[str], include_path: Path | None, prefix: str
) -> UserError:
    if "/" in name or Path(name).is_dir():
        return _no_task_file(name)
    where = "" if include_path is None else f", those in {include_path} among them"
    damaged = None if include_path is None else first_damaged(include_path)
    advice = f" {damaged} That file is passed over." if damaged else suggestion(name, known)
    return UserError(
        f"unknown task {name!r}.{advice} There are"
        f" {len(known):,}{where}: `questtrain eval --tasks` lists them, and"
        f" {prefix}include_path=FOLDER adds YAML files of yours."
    )


def _no_task_file(name: str) -> UserError:
    if Path(name).is_dir():
        return UserError(
            f"{name} is a folder, and no task file: give the path of a file in it, or the name of a"
            f" task with include_path={name}."
        )
    return UserError(f"there is no task file {name} (searched from {Path.cwd()}).")


def _refuse(name: str, task: Any) -> None:
    """UserError for a task that runs what a model wrote, or shows it pictures."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"the task {name} runs code that the model writes, which is not done here.")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"the task {name} is about pictures or sound, which the model cannot read.")


def _load(load: Callable[[], Any], name: str, datasets: Path | None, prefix: str) -> Any:
    """What ``load`` gives: without the hub if that suffices."""
    try:
        with _quiet(), _offline(), _inside(datasets):
            return load()
    except Exception as error:  # the YAML and Python of others, and the files that they read
        first = error
    wanted = _dataset_of(first)
    if wanted is None and isinstance(first, yaml.YAMLError):  # of a file that is included
        raise UserError(f"the task {name}: {yaml_fault(first, Path(name))}") from first
    if wanted is None:
        raise UserError(f"the task {name} cannot be loaded: {said(first)}") from first
    path, configuration = wanted
    if not _is_on_the_hub(path, datasets):
        where = f" in {datasets}" if datasets else ""
        raise UserError(f"the data of the task {name} ({path}{where}): {said(first)}") from first
    _check_reachable(name, path, configuration, prefix)
    try:
        with _quiet(), _inside(datasets):
            return load()
    except Exception as error:
        raise UserError(f"the data of the task {name} ({path}): {said(error)}") from error


def _check_reachable(name: str, path: str, configuration: str | None, prefix: str) -> None:
    """UserError says what to bring here where the hub does not give it."""
    import datasets

    try:
        if datasets.config.HF_HUB_OFFLINE:
            raise UserError("offline mode is on (HF_DATASETS_OFFLINE or HF_HUB_OFFLINE)")
        check_hub(path, "README.md", "dataset")
    except HubFileMissingError:
        return
    except UserError as error:
        which = f", configuration {configuration}" if configuration else ""
        download = f"hf download {path} --repo-type dataset --local-dir DATA/{path}"
        raise UserError(
            f"the task {name} needs the dataset {path}{which}, which is neither in the cache"
            f" ({datasets.config.HF_DATASETS_CACHE}) nor to be had: {error}. Where there is a"
            f" network, `{download}`; bring DATA here and give {prefix}datasets=DATA"
            " (docs/eval.md)."
        ) from error


def _dataset_of(error: BaseException) -> tuple[str, str | None] | None:
    """The dataset (path and configuration) whose loading ended in this error; None where it was
    something else. A task says so nowhere else: the frames of its ``download`` know the task."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        task: Any = frame.f_locals.get("self")
        path = getattr(task, "DATASET_PATH", None)
        if frame.f_code.co_name == "download" and path:
            return str(path), task.DATASET_NAME
    return None


def _is_on_the_hub(path: str, datasets: Path | None) -> bool:
    """Whether a dataset's path is a repository's name: no kind of file (``json``), no folder."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as KINDS_OF_FILE

    is_name = path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    return is_name and path not in KINDS_OF_FILE and not ((datasets or Path()) / path).exists()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' words about settings that a task leaves to it, and bars of files that
    are read; what a task prints is no result."""
    import datasets

    logger = logging.getLogger("lm_eval")
    before, had_bars = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(before)
        if had_bars:
            datasets.enable_progress_bars()


@contextmanager
def _offline() -> Iterator[None]:
    """Only what is on this machine: ``datasets`` looks at the setting whenever it loads."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """In that working directory, if any: ``datasets`` takes a folder OWNER/NAME in it for the
    repository of that name, and relative paths of data files are meant from there."""
    if folder is None:
        yield
        return
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
