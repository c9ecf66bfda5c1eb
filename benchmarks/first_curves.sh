#!/usr/bin/env bash
# The first four curves: 30M in BF16, W4A4, W2A2 and W1A1 on the machine's own source text,
# 40 million tokens each, the same data in the same order.
#   benchmarks/first_curves.sh WORK TOKENIZER OUTPUT
# WORK: a scratch folder; TOKENIZER: a tokenizer of 32,000 tokens; OUTPUT: where results go.
set -euo pipefail -f
work=$1 tokenizer=$2 output=$3
here=$(cd "$(dirname "$0")" && pwd)
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export QUESTTRAIN_CACHE=$work/cache
python3 "$here/collect_source_text.py" "$work/text" "$site" /usr/include /usr/local/cuda/include
: > "$work/commands.txt"
for bits in bf16 w4a4 w2a2 w1a1; do
  command="questtrain train model=30M bits=$bits data=text data.files=text/*.jsonl
    data.tokenizer=$(basename "$tokenizer") data.max_tokens=50000000 batch_size=64
    tokens_per_param=1.334 eval_every=100 name=first-$bits"
  command=$(echo $command)
  echo "$command" >> "$work/commands.txt"
  (
    cd "$work"
    cp "$tokenizer" .
    python3 -m questtrain.cli.main ${command#questtrain } 2>&1 | sed "s/^/$bits: /"
  )
done
cd "$work"
python3 "$here/curves.py" runs/first-{bf16,w4a4,w2a2,w1a1} --commands commands.txt \
  --json "$output/first-curves.json" --picture "$output/first-curves.png"
