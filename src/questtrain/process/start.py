"""How a child process of ours begins: Python, one of our modules, and nothing of the folder that it
is started in.

``python -m`` puts the working folder first on the path, and any ``random.py`` or ``json.py`` that
lies there would be imported instead of Python's own. ``-P`` (3.11) and ``-c`` below do not.
"""

from __future__ import annotations

import sys
from pathlib import Path

_CODE = (
    "import sys; sys.path[:] = [*filter(None, sys.path), {root!r}]; "
    "from {module} import main; sys.exit(main())"
)
_ROOT = str(Path(__file__).absolute().parents[2])
"""Where the package lies: last on the child's path, for those who have it on none."""


def python_command(module: str) -> tuple[str, ...]:
    """The words that run ``main()`` of one of our modules in a process of its own; it finds the
    arguments that are added in ``sys.argv[1:]``."""
    return (sys.executable, "-c", _CODE.format(module=module, root=_ROOT))
