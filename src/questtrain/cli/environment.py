"""Interpolation does not read the environment: ``${oc.env:TOKEN}`` in a setting would write a
secret into ``config.yaml``, logs and reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from questtrain.errors import UserError

OPEN = ("QUESTTRAIN_CACHE",)
"""Variables that our own settings are meant to read (``data.cache_dir``)."""


@contextmanager
def environment_closed() -> Iterator[None]:
    """OmegaConf's ``oc.env`` knows the variables in `OPEN` and no other while the block runs."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    OmegaConf.register_new_resolver("oc.env", _variable, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _variable(name: str, default: str | None = None) -> str | None:
    if name not in OPEN:
        raise UserError(
            f"${{oc.env:{name}}}: settings do not read the environment, because they are written"
            " into the run's records. Let the shell put in what may stand there: key=$NAME."
        )
    return os.environ.get(name, default)
