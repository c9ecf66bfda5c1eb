"""From a run's folder to its engine, in the engine's process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from questtrain.inference.engine.messages import Served, Steps


@dataclass(frozen=True)
class ServedRun:
    """A run, or a packed export of it, to be served; called, it is loaded. ``context`` None is the
    trained length; the other fields are `load_run`'s and `Engine`'s."""

    run: str
    device: str
    step: int | None
    packed: bool | None
    max_batch_size: int
    context: int | None

    def __call__(self) -> tuple[Steps, Served]:
        """The engine and what it serves; UserError where there is no such run, or it is unfit."""
        from questtrain.inference.engine.engine import Engine
        from questtrain.inference.engine.fingerprint import setup_sha256, weights_sha256
        from questtrain.inference.load import load_run

        trained = load_run(self.run, self.device, self.step, self.packed)
        engine = Engine(trained, self.max_batch_size, self.context)
        served = Served(
            trained.config.name or Path(self.run).resolve().name,
            trained.step,
            weights_sha256(trained.model),  # in the dtype that the engine has put it in
            setup_sha256(trained.tokenizer, engine.device, self.max_batch_size),
            str(trained.tokenizer.path),
            trained.tokenizer.bos_id,
            trained.config.bits,
        )
        return engine, served
