#!/usr/bin/env bash
# Why the losses of small models fell by half a nat between 50M and 100M tokens (mini_law.sh): the
# same model on the same text with and without near-duplicates, over 50M and 100M tokens, deeper,
# and on other text; with the loss of copied tokens at every checkpoint.
#   benchmarks/loss_step.sh WORK TOKENIZER CORPUS OUTPUT [SECONDS]
# CORPUS holds train.bin and val.bin of TOKENIZER's tokens; SECONDS: stop training after that long.
set -euo pipefail
work=$1 tokenizer=$2 corpus=$3 output=$4 limit=${5:-86400}
here=$(cd "$(dirname "$0")" && pwd)
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$work" "$output"
python3 "$here/collect_source_text.py" "$work/text" "$site" /usr/include /usr/local/cuda/include
python3 "$here/near_duplicates.py" "$work/text" "$work/unique" | tee "$output/near-duplicates.txt"
cp "$tokenizer" "$corpus/train.bin" "$corpus/val.bin" "$work"
cd "$work"
export QUESTTRAIN_CACHE=cache OMP_NUM_THREADS=2
questtrain() { python3 -m questtrain.cli.main "$@"; }
tokenizer=data.tokenizer=$(basename "$tokenizer")
text="data=text data.files=text/*.jsonl" unique="data=text data.files=unique/*.jsonl"
bins="data=tokens data.files=train.bin data.validation_files=val.bin"
set -f
questtrain data prepare $text $tokenizer & questtrain data prepare $unique $tokenizer & wait
questtrain data inspect $unique $tokenizer --json > "$output/loss-step-data.json"
shared="bits=bf16 $tokenizer log_every=25 eval_every=100 checkpoint_every=400
  train.keep_checkpoints=99 train.validation_tokens=524288 compile=false"
train() {  # each runs in the background
  echo questtrain train $* >> "$output/commands.txt"
  timeout --signal=TERM "$limit" python3 -m questtrain.cli.main train "$@" || echo "stopped with $?"
}
train model=3M $text tokens_per_param=20 $shared name=text-50M &
train model=3M $text tokens_per_param=40 $shared name=text-100M &
train model=3M $unique tokens_per_param=40 $shared name=unique-100M &
train model=3M $unique tokens_per_param=40 $shared lr=0.001 name=unique-lr1e-3 &
train model=3M $bins tokens_per_param=40 $shared name=prose-100M &
train model=1M $unique tokens_per_param=100 $shared name=deeper-1M &
wait
set +f
python3 "$here/copying.py" "$output/loss-step.json" runs/*
