#!/usr/bin/env bash
# torch 2.13.0, CPU: the FP8 product torch._scaled_mm gives shape and dtype on meta tensors; with out= it raises
# NotImplementedError ("no fake impl or Meta kernel"), though on real tensors both give the same, and torch.mm takes out= on
# meta tensors. An op that accumulates FP8 products in place cannot use its own code to say what tracing sees.
# Seen: "functional: (16, 64) float32; out=: NotImplementedError; mm out=: (16, 64); real: equal".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.0 2>/dev/null
"$w/venv/bin/python" - <<'P'
import torch


def product(device, out=None):
    e4m3 = torch.float8_e4m3fn
    a = torch.ones(16, 32, device=device).to(e4m3)
    b = torch.ones(64, 32, device=device).to(e4m3).t()
    one = torch.ones(1, device=device)
    return torch._scaled_mm(a, b, one, one, out_dtype=torch.float32, out=out)


plain = product("meta")
try:
    with_out = str(tuple(product("meta", torch.empty(16, 64, device="meta")).shape))
except NotImplementedError as error:
    with_out = type(error).__name__
mm = torch.mm(*(torch.empty(size, device="meta") for size in ((16, 32), (32, 64))), out=torch.empty(16, 64, device="meta"))
real = torch.equal(product("cpu"), product("cpu", torch.empty(16, 64)))
dtype = str(plain.dtype).removeprefix("torch.")
print(f"functional: {tuple(plain.shape)} {dtype}; out=: {with_out}; mm out=: {tuple(mm.shape)}; real: {'equal' if real else 'other'}")
raise SystemExit(0 if with_out == "NotImplementedError" and plain.shape == mm.shape and real else 1)
P
