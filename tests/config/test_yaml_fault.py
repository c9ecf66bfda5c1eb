"""A YAML file that is none is said in one line, with its file, line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from questtrain.config.loading import read_config
from questtrain.config.yaml_fault import yaml_fault
from questtrain.errors import UserError


@pytest.mark.parametrize(
    ("content", "place", "part"),
    [
        (b"{\n", "line 2, column 1", "expected the node content, but found '<stream end>'"),
        (b"a: 1\nb: [1\nc: 2\n", "line 3, column 2", "that begins in line 2, column 4"),
        (b"a: caf\xe9\n", "line 1, column 7", "invalid continuation byte"),
        ("ü: 1\nb: \x01\n".encode(), "line 2, column 4", "special characters"),
    ],
)
def test_a_run_s_damaged_config_says_where(
    tmp_path: Path, content: bytes, place: str, part: str
) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_config(tmp_path / "config.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/config.yaml, {place}: no ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_of_no_file_and_nesting_without_end() -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load("a: [")
    assert yaml_fault(caught.value).startswith("a YAML file, line 1, column 5: no YAML: ")
    assert yaml_fault(RecursionError(), Path("a.yaml")) == "a.yaml: nested too deeply to read."
