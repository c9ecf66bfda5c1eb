#!/usr/bin/env bash
# gemlite 0.6.0, low-bit products in Triton: `import gemlite` itself asks for a GPU. Where none is visible it raises (with a
# CPU build of torch "AssertionError: Torch not compiled with CUDA enabled"), so that a program cannot import it to ask what
# it offers, and a test of a script that uses it can only be written around it.
# Seen: "import gemlite without a GPU: AssertionError".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 triton==3.9.0 numpy tqdm gemlite==0.6.0 2>/dev/null
cd "$w" && CUDA_VISIBLE_DEVICES="" "$w/venv/bin/python" - <<'P'
try:
    import gemlite  # noqa: F401

    error = None
except (AssertionError, RuntimeError) as raised:
    error = type(raised).__name__
print(f"import gemlite without a GPU: {error}")
assert error in ("AssertionError", "RuntimeError")
P
