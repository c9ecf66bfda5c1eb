"""``questtrain serve``."""

from __future__ import annotations

from collections.abc import Sequence

from questtrain.cli.arguments import own_config, parse_arguments
from questtrain.cli.help_page import own_settings
from questtrain.config.model_use import PACKED
from questtrain.config.serve import ServeConfig
from questtrain.errors import UserError

HELP = """usage: questtrain serve run=DIR [key=value …]

Answers requests of the OpenAI API (/v1/completions, /v1/chat/completions, /v1/models) with the
newest checkpoint of a run, many at a time; /health and /metrics tell how it does, / is a page to
try the model by hand. SIGTERM or Ctrl-C: what is being answered is finished first, a second one
ends at once.

{settings}

  questtrain serve run=runs/first
  QUESTTRAIN_API_KEY=… questtrain serve run=runs/first host=0.0.0.0

docs/serve.md tells the rest.
"""

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "jinja2")


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain serve --help`` prints."""
    return HELP.replace("{settings}", own_settings(ServeConfig, "serve"))


def main(words: Sequence[str]) -> int:
    """Serve until asked to stop."""
    config = own_config(parse_arguments(words), "serve", ServeConfig)
    if config is None:
        return 0
    check_packages()

    from questtrain.inference.engine.loading import ServedRun
    from questtrain.inference.serve.server import serve

    run = ServedRun(
        config.run,
        config.device,
        config.step,
        PACKED[config.packed],
        config.max_batch_size,
        config.context,
    )
    serve(config, run)
    return 0


def check_packages(command: str = "serve", more: Sequence[str] = ()) -> None:
    """UserError where the extra ``serve`` is not installed; ``more``: what the command needs of it
    besides what a server does."""
    from importlib.util import find_spec

    missing = [name for name in (*PACKAGES, *more) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"questtrain {command} needs {', '.join(missing)}: pip install '.[serve]' in the"
            " folder of questtrain's sources."
        )
