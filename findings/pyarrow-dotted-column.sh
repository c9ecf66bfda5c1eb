#!/usr/bin/env bash
# pyarrow 26.0.1: ParquetFile.iter_batches(columns=["doc.body"]) of a file that has a column named "doc.body" and a
# struct column "doc" with a field "body" gives both, under their own names: a dotted name is not either a path or a name.
# Seen: "doc.body, doc".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1 2>/dev/null
"$w/venv/bin/python" - "$w/table.parquet" <<'P'
import sys

import pyarrow
from pyarrow import parquet

table = pyarrow.table({"doc.body": ["one"], "doc": [{"body": "two", "other": 3}], "id": [1]})
parquet.write_table(table, sys.argv[1])
batch = next(parquet.ParquetFile(sys.argv[1]).iter_batches(columns=["doc.body"]))
print(", ".join(batch.schema.names))
raise SystemExit(0 if batch.schema.names == ["doc.body", "doc"] else 1)
P
