"""The house's plan, enforced on the source as it is: who may import whom, and how big things get.

Imports are read from the syntax tree, those inside functions and under TYPE_CHECKING included.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "questtrain"
FILES = sorted(ROOT.rglob("*.py"))

# design.md: package → the packages of ours that it may import besides itself. Everything may
# import the foundations; a new package has to be given its place here.
FOUNDATIONS = {"errors", "version", "config"}
GROUND = FOUNDATIONS | {"device", "cuda_graph", "store", "process"}
FLOORS = {
    "errors": set(),
    "version": set(),
    "config": {"errors"},
    "device": FOUNDATIONS,
    "cuda_graph": set(),
    "store": FOUNDATIONS,
    "process": {"errors"},
    "kernels": FOUNDATIONS,
    "quant": FOUNDATIONS | {"kernels"},
    "model": FOUNDATIONS | {"quant", "kernels"},
    "data": GROUND,
    "packed": GROUND | {"model", "data", "quant", "kernels"},
    "hf": GROUND | {"model", "quant", "kernels"},
    "train": GROUND | {"packed", "model", "data", "quant", "kernels"},
    "inference": GROUND | {"hf", "packed", "model", "data", "quant", "kernels"},
    "bench": GROUND | {"train", "inference", "model", "data", "quant", "kernels"},
    "scaling": FOUNDATIONS | {"store"},
    "sweep": FOUNDATIONS | {"store", "process", "scaling"},
}
ANYTHING = {"cli", "__init__", "__main__"}  # the roof, and the lazy public names
WITHOUT_TORCH = {"errors", "version", "config", "process", "scaling", "sweep"}
ONLY_CLI = {"hydra", "omegaconf"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 40


def name_of(file: Path) -> str:
    """``…/quant/linear.py`` → ``questtrain.quant.linear``; a package is named by its folder."""
    parts = ("questtrain", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file) for file in FILES}


def floor_of(module: str) -> str:
    """``questtrain.quant.linear`` → ``quant``; the root package is ``__init__``."""
    return [*module.split("."), "__init__"][1]


def resolve_from(node: ast.ImportFrom, file: Path) -> str:
    """The absolute module of a ``from … import``, relative ones included."""
    if not node.level:
        return node.module or ""
    package = name_of(file).split(".") + ([""] if file.name == "__init__.py" else [])
    return ".".join([*package[: -node.level], *([node.module] if node.module else [])])


@cache
def imports(file: Path) -> frozenset[str]:
    """Every module that ``file`` imports anywhere: modules of ours down to the submodule."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_from(node, file)
            submodules = {f"{base}.{alias.name}" for alias in node.names} & MODULES
            values = {alias.name for alias in node.names} - {m.split(".")[-1] for m in submodules}
            found |= submodules | ({base} if values else set())
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(found)


def is_dynamic_import(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def ours(file: Path) -> Iterator[str]:
    return (m for m in imports(file) if m == "questtrain" or m.startswith("questtrain."))


def external(file: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(file)}


def in_floors(*floors: str) -> list[Path]:
    return [file for file in FILES if floor_of(name_of(file)) in floors]


def report(file: Path) -> str:
    return str(file.relative_to(ROOT.parent))


def test_the_parser_sees_what_it_should() -> None:
    """A known import of each form is found, so that the rules below do not pass for blindness."""
    assert "questtrain.quant.linear" in imports(ROOT / "quant" / "__init__.py")  # a value of it
    assert "questtrain.config" in imports(ROOT / "quant" / "linear.py")
    assert "torch" in external(ROOT / "quant" / "linear.py")
    assert "questtrain.inference.load" in imports(ROOT / "__init__.py")  # under TYPE_CHECKING
    assert len(FILES) > 20


def test_every_package_has_its_place() -> None:
    """Whatever lies in src/questtrain is named in the plan above."""
    assert {floor_of(name) for name in MODULES} <= FLOORS.keys() | ANYTHING


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_one_direction(floor: str) -> None:
    """No arrow from a lower floor to a higher one, and none between wings."""
    allowed = FLOORS[floor] | {floor}
    wrong = [
        f"{report(file)} imports {module}"
        for file in in_floors(floor)
        for module in ours(file)
        if floor_of(module) not in allowed
    ]
    assert not wrong, f"{floor} may import {sorted(FLOORS[floor])} only:\n" + "\n".join(wrong)


def test_no_circles() -> None:
    """The modules can be put in an order in which each imports only earlier ones. (That importing
    a module also runs its packages' ``__init__`` is left out: every package would be a circle.)"""
    graph = {
        name_of(file): {m for m in ours(file) if m in MODULES and m != name_of(file)}
        for file in FILES
        if file != ROOT / "__init__.py"  # lazy: imports nothing when it is imported
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " ← ".join(error.args[1]))


def names_an_op(node: ast.AST) -> bool:
    """Whether this is ``torch.ops.questtrain``, or the same of an ``ops`` that torch's were given
    to."""
    if not isinstance(node, ast.Attribute) or node.attr != "questtrain":
        return False
    name = node.value.attr if isinstance(node.value, ast.Attribute) else ast.unparse(node.value)
    return "ops" in name


def test_ops_are_called_by_their_functions() -> None:
    """``torch.ops.questtrain.…`` would be an arrow that no import shows: only the module that makes
    the ops says it; `questtrain.kernels.ops` defines them with it, and all others import those."""
    maker = ROOT / "kernels" / "library.py"
    users = {f for f in FILES if any(map(names_an_op, ast.walk(ast.parse(f.read_text("utf-8")))))}
    assert users == {maker}
    definers = {f.parent for f in FILES if "questtrain.kernels.library" in imports(f)}
    assert definers == {ROOT / "kernels" / "ops"}


def test_only_cli_knows_hydra() -> None:
    """Components get typed values: Hydra and its DictConfig end at the command line."""
    wrong = [report(f) for f in FILES if external(f) & ONLY_CLI and f not in in_floors("cli")]
    assert not wrong


def test_the_config_and_the_law_know_no_torch() -> None:
    """Not even inside a function."""
    wrong = [report(f) for f in in_floors(*WITHOUT_TORCH) if "torch" in external(f)]
    assert not wrong


def test_importing_the_config_imports_no_torch() -> None:
    """Nor through another package: a fresh interpreter proves it."""
    code = "import sys, questtrain.config, questtrain.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("file", FILES, ids=report)
def test_rooms_stay_small(file: Path) -> None:
    """One idea a file, a function on a screen, and a name that says what is inside."""
    assert not VAGUE_NAMES & set(file.relative_to(ROOT).with_suffix("").parts)
    assert not file.stem.endswith("_manager")
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert not long


def test_the_page_about_the_house_names_what_there_is() -> None:
    """docs/architecture.md: every package, and every file and folder that it names exists, but
    those that a word in capitals stands for. A row about a folder names what lies in it."""
    home = ROOT.parents[1]
    page = (home / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./-]+)`", page) if "/" in name or ".py" in name}
    told = {name for name in named if not re.search(r"[A-Z]{2,}|\bX\b", name)}
    missing = [
        name
        for name in told
        if not ((home / name).exists() or any(ROOT.glob(name)) or any(ROOT.glob(f"*/{name}")))
    ]
    assert len(told) > 50
    assert not missing
    assert all(f"{floor}/" in page or f"{floor}.py" in page for floor in FLOORS)
