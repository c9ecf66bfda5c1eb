"""A rank that torchrun started ends with it: its agent's death is a stop signal.

An agent that is killed leaves its ranks behind. They would go on in a run that the other agents
start anew without them, with the run folder locked.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

SECONDS_BETWEEN_LOOKS = 1.0


def stop_with_agent(environment: Mapping[str, str]) -> None:
    """Where torchrun started this process: SIGTERM to it once torchrun is gone."""
    if "TORCHELASTIC_RUN_ID" in environment:
        agent = os.getppid()
        threading.Thread(target=_stop_without, args=(agent,), name="agent", daemon=True).start()


def _stop_without(agent: int) -> None:
    while os.getppid() == agent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
