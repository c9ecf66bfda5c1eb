#!/usr/bin/env bash
# Figures 2, 8 and 9 from real runs: 30M at W8A8, 1,000 steps of 64 × 512 tokens, with the
# straight-through estimator, with trust, and with trust in Hadamard space; all three at once.
#   benchmarks/diagnostics.sh WORK CORPUS OUTPUT
# CORPUS holds train.bin, val.bin and tokenizer.model (token ids, see docs/data.md); OUTPUT gets
# diagnostics-30M.json and the pictures.
set -euo pipefail
work=$1 corpus=$(realpath "$2") output=$3
here=$(cd "$(dirname "$0")" && pwd)
export QUESTTRAIN_CACHE=$work/cache
mkdir -p "$work"
cd "$work"
ln -sfn "$corpus" corpus
questtrain() {
  echo "questtrain $*" >> commands.txt
  python3 -m questtrain.cli.main "$@"
}
data=(data=tokens data.files=corpus/train.bin data.validation_files=corpus/val.bin
  data.tokenizer=corpus/tokenizer.model)
method() {
  questtrain train model=30M bits=w8a8 method=$1 "${data[@]}" batch_size=64 max_steps=1000 \
    eval_every=250 checkpoint_every=200 train.keep_checkpoints=100 train.diagnose_every=50 \
    name=w8a8-$1
  for what in alignment mask persistence; do
    questtrain diagnose run=runs/w8a8-$1 what=$what
  done
}
: > commands.txt
questtrain data prepare model=30M "${data[@]}"
for name in ste quest-noht quest; do
  method $name 2>&1 | sed "s/^/$name: /" &
done
wait
for figure in alignment mask persistence; do
  questtrain plot $figure runs/w8a8-{ste,quest-noht,quest} -o "$output/$figure.png"
done
python3 "$here/curves.py" runs/w8a8-{ste,quest-noht,quest} --commands commands.txt \
  --json "$output/diagnostics-30M.json"
