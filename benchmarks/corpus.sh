#!/usr/bin/env bash
# 30M on a fixed corpus, 500 steps of 64 × 512 tokens, three seeds each of BF16, W4A4 and W4A4 with
# FP8 products in the backward: the settings of the reference losses of the authors' implementation
# in docs/lab-notes.md.
#   benchmarks/corpus.sh WORK CORPUS OUTPUT
# CORPUS holds train.bin, val.bin and tokenizer.model.
set -euo pipefail
work=$1 corpus=$2 output=$3
here=$(cd "$(dirname "$0")" && pwd)
export QUESTTRAIN_CACHE=$work/cache
cd "$work"
: > commands.txt
runs=()
for case in "bf16" "w4a4" "w4a4 train.backward=fp8"; do
  for seed in 0 1 2; do
    name="corpus-$(echo "$case" | tr ' =' '--')-seed$seed"
    command="questtrain train model=30M bits=$case seed=$seed data=tokens
      data.files=$(basename "$corpus")/train.bin data.validation_files=$(basename "$corpus")/val.bin
      data.tokenizer=$(basename "$corpus")/tokenizer.model batch_size=64 max_steps=500
      eval_every=100 train.validation_tokens=1179648 name=$name"
    command=$(echo $command)
    echo "$command" >> commands.txt
    (cd "$(dirname "$corpus")" && python3 -m questtrain.cli.main ${command#questtrain } \
      runs_dir="$work/runs" 2>&1 | sed "s/^/$case $seed: /")
    runs+=("runs/$name")
  done
done
python3 "$here/curves.py" "${runs[@]}" --commands commands.txt --json "$output/corpus-h100.json"
