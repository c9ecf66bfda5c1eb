"""The table of docs/export.md: trained models in every format, each run by the program it is for.

python benchmarks/export_table.py certify RESULTS   trains, exports and verifies; writes RESULTS
python benchmarks/export_table.py table RESULTS     prints the table of it
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

BITS = ("bf16", "w4a16", "w2a16", "w1.58a16", "w1a16", "w4a4", "w1a1")
METHODS = ("quest", "quest-noht")
TRAIN = (
    "model=nano", "model.num_layers=2", "model.hidden_size=256", "data=stdlib", "device=cpu",
    "batch_size=8", "micro_batch_size=8", "sequence_length=128", "max_steps=200", "eval_every=200",
    "checkpoint_every=200", "train.validation_tokens=4096",
)  # fmt: skip


def certify(results: Path) -> None:
    """Everything that is tried, with its certificate or the reason why not."""
    from questtrain.cli import train
    from questtrain.config.export_formats import EXPORT_FORMATS
    from questtrain.errors import TrainingStopped, UserError
    from questtrain.inference.export.format import Options
    from questtrain.inference.export.source import Source
    from questtrain.inference.export.write import export

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for bits in BITS:
            for method in METHODS[: 1 if bits == "bf16" else None]:
                name = f"{bits}-{method}"
                words = [f"bits={bits}", f"method={method}", f"runs_dir={folder}", f"name={name}"]
                train.main([*TRAIN, *words])
                source = Source.open(Path(folder, name))
                for form in EXPORT_FORMATS:
                    row: dict[str, Any] = {"bits": bits, "method": method, "format": form}
                    output = Path(folder, "exports", name, form)
                    options = Options(experimental=form == "gguf-rotated")
                    try:
                        certificate = export(source, form, output, options)
                        row["certificate"] = certificate and asdict(certificate)
                    except UserError as error:
                        row["refused"] = str(error).replace(folder, "").partition(": ")[2]
                    except TrainingStopped as error:
                        row["failed"] = str(error).replace(folder, "")
                    rows.append(row)
                    print(json.dumps(row)[:150], file=sys.stderr)
    command = f"questtrain train {' '.join(TRAIN)} bits=… method=…"
    record = {"date": date.today().isoformat(), "command": command, "rows": rows}
    results.write_text(json.dumps(record, indent=1) + "\n")


def cell(row: dict[str, Any], reasons: list[str]) -> str:
    """What the certificate says in a few signs; a refusal is the number of its reason."""
    if "refused" in row:
        reason = row["refused"].replace(row["bits"], "…")
        if reason not in reasons:
            reasons.append(reason)
        return f"({reasons.index(reason) + 1})"
    if "failed" in row:
        return "fails"
    found = row["certificate"]["comparison"]
    if found is None:
        return "codes alone"
    if row["certificate"]["bound"]["largest"] is not None:
        return f"{found['largest_logit_difference']:.0e}".replace("e-0", "e-").replace("0e+00", "0")
    median = f"{found['median_logit_difference']:.0e}".replace("e-0", "e-")
    return f"{median} ~ {found['argmax_agreement']:.1%}"


def table(results: Path) -> str:
    """Markdown: a line a run, a column a format; below it the reasons of refusals."""
    rows = json.loads(results.read_text())["rows"]
    formats = list(dict.fromkeys(row["format"] for row in rows))
    lines = ["| run | " + " | ".join(formats) + " |", "|---" * (len(formats) + 1) + "|"]
    reasons: list[str] = []
    for bits, method in dict.fromkeys((row["bits"], row["method"]) for row in rows):
        own = {r["format"]: r for r in rows if (r["bits"], r["method"]) == (bits, method)}
        name = bits if bits == "bf16" else f"{bits}, {'rotated' if method == 'quest' else 'not'}"
        cells = [cell(own[each], reasons) for each in formats]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    refusals = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *refusals])


if __name__ == "__main__":
    action, file = sys.argv[1], Path(sys.argv[2])
    if action == "certify":
        certify(file)
    else:
        print(table(file))
