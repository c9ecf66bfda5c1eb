"""Gather a machine's own source text (Python packages, C headers) as JSON-lines files.

    python benchmarks/collect_source_text.py OUTPUT ROOT [ROOT …]

Every .py, .pyi, .h, .hpp, .cuh, .c and .cpp file below the roots that is UTF-8 and at most 1 MiB
becomes one row ``{"text": …}``; equal files count once. Rows are spread over 16 files by a hash of
their content, so the output depends on the files alone. Reads with
``data=text data.files=OUTPUT/*.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

SUFFIXES = {".py", ".pyi", ".h", ".hpp", ".cuh", ".c", ".cpp"}
LARGEST = 1 << 20
FILES = 16


def main(output: Path, roots: list[Path]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, str] = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.suffix not in SUFFIXES or not path.is_file() or path.is_symlink():
                continue
            content = path.read_bytes()
            if not 64 <= len(content) <= LARGEST:
                continue
            try:
                rows[hashlib.sha256(content).hexdigest()] = content.decode()
            except UnicodeDecodeError:
                continue
    for number in range(FILES):
        with (output / f"{number:02d}.jsonl").open("w", encoding="utf-8") as file:
            for digest in sorted(rows):
                if int(digest[-2:], 16) % FILES == number:
                    file.write(json.dumps({"text": rows[digest]}) + "\n")
    size = sum(len(text.encode()) for text in rows.values())
    print(f"{len(rows):,} files, {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(root) for root in sys.argv[2:]])
