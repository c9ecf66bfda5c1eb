"""``questtrain completion``: shell completion of commands, settings and their choices."""

from __future__ import annotations

import os
from collections.abc import Sequence

from questtrain.cli.commands import COMMANDS
from questtrain.cli.hydra_config import group_choices
from questtrain.config import TrainConfig
from questtrain.config.bits import COMMON
from questtrain.config.loading import setting_names
from questtrain.config.schema import GROUPS
from questtrain.errors import unknown
from questtrain.sweep import sweep_names

HELP = """usage: questtrain completion bash|zsh

Prints what to put into your shell's start-up file:

  echo 'eval "$(questtrain completion bash)"' >> ~/.bashrc
  echo 'eval "$(questtrain completion zsh)"'  >> ~/.zshrc
"""

SCRIPTS = {
    "bash": "complete -o nospace -C 'questtrain completion query' questtrain",
    "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
    "complete -o nospace -C 'questtrain completion query' questtrain",
}
COMMANDS_WITH_SETTINGS = ("train", "sweep", "info", "data")


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain completion --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Print the script of a shell, or answer its query."""
    if words[0] == "query":
        line = os.environ.get("COMP_LINE", "")
        print("\n".join(candidates(line[: int(os.environ.get("COMP_POINT", len(line)))])))
        return 0
    if words[0] not in SCRIPTS:
        raise unknown("shell", words[0], SCRIPTS)
    print(SCRIPTS[words[0]])
    return 0


def candidates(line: str) -> list[str]:
    """Completions of a command line's last word, as bash wants them: after the last '='."""
    words = line.split(" ")
    last = words[-1]
    if len(words) <= 2:
        return [f"{name} " for name in COMMANDS if name.startswith(last)]
    if words[1] not in COMMANDS_WITH_SETTINGS:
        return []
    if words[1] == "sweep" and len(words) == 3:
        return [f"{name} " for name in sweep_names() if name.startswith(last)]
    key, separator, value = last.partition("=")
    if not separator:
        names = sorted([*setting_names(TrainConfig), *GROUPS])
        return [f"{name}=" for name in names if name.startswith(key)]
    choices = group_choices(key) if key in GROUPS else COMMON if key == "bits" else ()
    return [f"{choice} " for choice in choices if choice.startswith(value)]
