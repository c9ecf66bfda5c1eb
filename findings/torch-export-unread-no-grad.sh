#!/usr/bin/env bash
# torch 2.13.0: a model that computes something under torch.no_grad() which its outputs do not depend on is exported by
# torch.export.export, runs, and is saved without a word; torch.export.load cannot read the file: SpecViolationError("Node.meta
# wrap_with_set_grad_enabled is missing val field."). Where the outputs do depend on it, the file loads.
# Seen: "read: loaded; unread: SpecViolationError".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.0 2>/dev/null
"$w/venv/bin/python" - <<'P'
import io
import warnings

import torch

warnings.simplefilter("ignore")


class Model(torch.nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def forward(self, x):
        with torch.no_grad():
            mask = x > 0
        return x * mask if self.reads else x * 2


def outcome(reads):
    x = torch.randn(3)
    program = torch.export.export(Model(reads), (x,))
    assert torch.equal(program.module()(x), Model(reads)(x))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    try:
        torch.export.load(file)
    except Exception as error:
        return type(error).__name__
    return "loaded"


seen = {"read": outcome(True), "unread": outcome(False)}
print("; ".join(f"{name}: {found}" for name, found in seen.items()))
raise SystemExit(0 if list(seen.values()) == ["loaded", "SpecViolationError"] else 1)
P
