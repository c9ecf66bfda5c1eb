#!/usr/bin/env bash
# The law in miniature: `questtrain sweep mini` on the machine's own source text, then the table of
# runs, the law and its figures. Started again in the same WORK, it goes on where it stopped.
#   benchmarks/mini_law.sh WORK TOKENIZER OUTPUT [SECONDS]
# WORK: a scratch folder; TOKENIZER: a tokenizer of 32,000 tokens; OUTPUT: where results go;
# SECONDS: stop the sweep (resumably) after that long.
set -euo pipefail -f
work=$1 tokenizer=$2 output=$3 limit=${4:-86400}
here=$(cd "$(dirname "$0")" && pwd)
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$work"
[ -d "$work/text" ] ||
  python3 "$here/collect_source_text.py" "$work/text" "$site" /usr/include /usr/local/cuda/include
cp "$tokenizer" "$work"
cd "$work"
export QUESTTRAIN_CACHE=cache
questtrain() { python3 -m questtrain.cli.main "$@"; }
data="data=text data.files=text/*.jsonl data.tokenizer=$(basename "$tokenizer")"
questtrain data prepare $data
questtrain data inspect $data --json > "$output/mini-law-data.json"
command="sweep mini $data launcher.runs_per_gpu=6 eval_every=1000 checkpoint_every=500"
{ date -u +%F; nvidia-smi -L | cut -d'(' -f1; echo "questtrain $command"; } > "$output/mini-law-command.txt"
timeout --signal=TERM "$limit" python3 -m questtrain.cli.main $command || echo "stopped with $?"
questtrain sweep mini --status || true
questtrain runs runs/mini --jsonl "$output/mini-law-runs.jsonl"
questtrain fit runs/mini --json "$output/mini-law.json" -o "$output/mini-law.pdf" || true
