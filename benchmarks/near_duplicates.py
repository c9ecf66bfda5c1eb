"""Leave out near-duplicate rows of JSON-lines files, by MinHash (datasketch).

    python benchmarks/near_duplicates.py INPUT OUTPUT [THRESHOLD]

INPUT and OUTPUT are folders of ``*.jsonl`` files with rows ``{"text": …}``. A row is left out where
an earlier one is estimated to share at least THRESHOLD (0.7) of its shingles of five words, by 64
permutations. Files and rows are taken in order, so that the output depends on the input alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from datasketch import MinHash, MinHashLSH

PERMUTATIONS, WORDS = 64, 5


def minhash(text: str) -> MinHash:
    """Of the text's shingles of `WORDS` words."""
    words = re.findall(r"\w+", text)
    count = max(1, len(words) - WORDS + 1)
    shingles = {" ".join(words[place : place + WORDS]).encode() for place in range(count)}
    result = MinHash(num_perm=PERMUTATIONS)
    result.update_batch(shingles)
    return result


def main(source: Path, target: Path, threshold: float) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    rows = kept = 0
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for file in sorted(source.glob("*.jsonl")):
            texts = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
            with (target / file.name).open("w", encoding="utf-8") as output:
                for text, each in zip(texts, pool.map(minhash, texts, chunksize=64), strict=True):
                    rows += 1
                    if found.query(each):
                        continue
                    found.insert(rows, each)
                    kept += 1
                    output.write(json.dumps({"text": text}) + "\n")
    print(f"{kept:,} of {rows:,} rows are kept")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.7)
