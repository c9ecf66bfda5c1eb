"""The settings on help pages: from the dataclasses and from ``conf/``, nothing typed."""

from __future__ import annotations

from dataclasses import fields

import pytest

from questtrain.cli.generate import GenerateConfig
from questtrain.cli.help_page import default_text, own_settings, train_settings
from tests.cli.test_every_setting import COMMANDS, yaml_of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_setting_of_its_command(name: str) -> None:
    """The defaults' file holds exactly what the dataclass declares, and the page shows it."""
    declared = {field.name for field in fields(COMMANDS[name])}
    assert set(yaml_of(name)) == declared
    page = "\n" + own_settings(COMMANDS[name], name)
    assert all(f"\n  {setting} " in page for setting in declared)


def test_what_a_line_says() -> None:
    """What it is, the choices or a narrow range, the default; none where one must be given."""
    lines = own_settings(GenerateConfig, "generate").splitlines()
    told = "the run's folder, as `questtrain train` printed it, or a packed export of it"
    assert lines[0] == f"  run             {told}"
    assert "  max_new_tokens  tokens to add at the most   [128]" in lines
    assert "  device          what it runs on (auto, cpu, cuda or cuda:N)   [auto]" in lines
    assert "at least 1e-3 and at most 1e3, or 0" in " ".join(lines)


def test_defaults_of_training_that_a_size_sets() -> None:
    """By size where all sizes have their own; otherwise nano's, the first that anybody runs."""
    words = " ".join(train_settings().split())
    assert "sequences a step (at" not in words, "so wide a range need not be said"
    assert "batch_size sequences a step [512; nano 8]" in words
    assert "lr peak learning rate (table 3 of the paper) [by size]" in words
    assert "3200M [30M]" in words


def test_defaults_are_written_as_they_are_typed() -> None:
    values = (None, True, [], ["800M", 7], 1e-3, "???")
    assert [*map(default_text, values)] == ["null", "true", "[]", "[800M, 7]", "0.001", ""]
