#!/usr/bin/env bash
# torch 2.13.0: switching autocast off by a tensor's own device, torch.autocast(x.device.type, enabled=False), as model code does
# around what must stay in fp32, raises RuntimeError("unsupported scalarType") where x is a meta tensor. The same line
# works for cpu, and tracing with FakeTensor, whose device is the real one, never meets it.
# Seen: "cpu: runs; fake: runs; meta: RuntimeError unsupported scalarType".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.0 2>/dev/null
"$w/venv/bin/python" - <<'P'
import torch
from torch._subclasses import FakeTensorMode


def outcome(x):
    try:
        with torch.autocast(x.device.type, enabled=False):
            x.float()
    except RuntimeError as error:
        return f"RuntimeError {error}"
    return "runs"


seen = {"cpu": outcome(torch.ones(2))}
with FakeTensorMode():
    seen["fake"] = outcome(torch.ones(2))
seen["meta"] = outcome(torch.ones(2, device="meta"))
print("; ".join(f"{name}: {found}" for name, found in seen.items()))
raise SystemExit(0 if list(seen.values()) == ["runs", "runs", "RuntimeError unsupported scalarType"] else 1)
P
