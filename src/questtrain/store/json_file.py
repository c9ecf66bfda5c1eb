"""Small JSON files of ours, read back into the dataclasses that wrote them.

Types and bounds stand in the dataclass (``Annotated``), and pydantic holds a file to them: a whole
number counts as a number, nothing else as another kind, and NaN and infinities are no numbers. A
disk may have damaged a file, or a hand: one message says what cannot be, with the file, the field,
what it holds and what it should be.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from annotated_types import Ge, Gt
from pydantic import ConfigDict, RootModel, ValidationError
from pydantic_core import ErrorDetails

from questtrain.config.ranges import shown
from questtrain.errors import UserError
from questtrain.store.patience import patiently

Content = TypeVar("Content")

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
"""How pydantic reads: no kind is made another, and NaN and infinities are no numbers."""

Count: TypeAlias = Annotated[int, Ge(0)]
Positive: TypeAlias = Annotated[float, Gt(0)]
NotNegative: TypeAlias = Annotated[float, Ge(0)]


class DamagedJson(UserError):
    """A file that holds something else than it should; ``problem`` says what, without the file."""

    def __init__(self, path: Path, problem: str, remedy: str = "") -> None:
        super().__init__(f"{path} is damaged: {problem}.{remedy and ' ' + remedy}")
        self.problem = problem


class _File(RootModel[Content]):
    """The whole of a file, which gives pydantic its options: a dataclass takes none."""

    model_config = STRICT


def read_json(path: Path, kind: type[Content], remedy: str = "") -> Content:
    """The ``kind`` (a dataclass, or a mapping of such) in the file; keys that are no fields are
    passed over. ``remedy`` ends every message.

    DamagedJson for a file that cannot be read or holds none; FileNotFoundError passes.
    """
    try:
        return parse_json(patiently(f"reading {path}", path.read_bytes), kind)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedJson(path, f"it cannot be read: {error.strerror}", remedy) from error
    except ValidationError as error:
        raise DamagedJson(path, field_problem(error), remedy) from error


def parse_json(text: str | bytes, kind: type[Content]) -> Content:
    """The ``kind`` that a JSON text holds; a ValueError (pydantic's ValidationError) otherwise."""
    content: Content = _file_of(kind).model_validate_json(text).root  # type: ignore[arg-type]
    return content


@cache
def _file_of(kind: Any) -> type[_File[Any]]:
    """`_File` of one kind. Making it takes milliseconds, and pydantic itself keeps it only until
    the next garbage collection."""
    return _File[kind]


def field_problem(error: ValidationError) -> str:
    """What is wrong with the first field at fault, in words."""
    return _problem(error.errors(include_url=False)[0])


def _problem(error: ErrorDetails) -> str:
    """``shards.3: 'tokens' holds 'many'; it should be a valid integer``"""
    if error["type"] == "json_invalid":
        return f"it cannot be read as JSON: {error['ctx']['error']}"
    if not error["loc"]:
        return f"it holds {shown(repr(error['input']))}; it {_expected(error)}"
    *place, key = map(str, error["loc"])
    where = f"{'.'.join(place)}: " if place else ""
    if error["type"] == "missing":
        return f"{where}{key!r} is missing"
    return f"{where}{key!r} holds {shown(repr(error['input']))}; it {_expected(error)}"


def _expected(error: ErrorDetails) -> str:
    """``should be …``, in pydantic's words or in those of a ValueError of ours, whose subject
    ("Input", "List", …) the message has named."""
    _, should, rest = error["msg"].replace(" after validation", "").partition("should")
    return should + rest or error["msg"]
