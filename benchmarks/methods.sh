#!/usr/bin/env bash
# Every method at W4A4 on `nano`: the same 2,000 steps of 8,192 tokens of Python's standard library,
# three seeds each. Learned scales at several shares of the learning rate, because theirs is the
# setting they depend on most.
#   benchmarks/methods.sh WORK OUTPUT
# WORK: a scratch folder; OUTPUT: where methods-nano.json goes. JOBS runs at a time (4).
set -euo pipefail
work=$1 output=$2
here=$(cd "$(dirname "$0")" && pwd)
export QUESTTRAIN_CACHE=$work/cache
mkdir -p "$work"
cd "$work"
python3 -m questtrain.cli.main data prepare model=nano data=stdlib > data.txt
configurations=(
  "bf16 bits=bf16"
  "quest bits=w4a4"
  "quest-noht bits=w4a4 method=quest-noht"
  "clip bits=w4a4 method=clip"
  "ste bits=w4a4 method=ste"
)
for method in lsq lsq-plus pact; do
  for share in 1.0 0.1 0.01; do
    configurations+=("$method-$share bits=w4a4 method=$method quant.lr_scale=$share")
  done
done
for configuration in "${configurations[@]}"; do
  read -r name settings <<< "$configuration"
  for seed in 0 1 2; do
    echo "questtrain train model=nano data=stdlib $settings seed=$seed batch_size=32" \
      "micro_batch_size=32 max_steps=2000 tokens_per_param=20 log_every=50 eval_every=500" \
      "checkpoint_every=2000 train.validation_tokens=402432 name=$name-seed$seed"
  done
done > commands.txt
train() {
  echo "start $*"
  python3 -m questtrain.cli.main ${1#questtrain } > "log-${1##*name=}.txt" 2>&1 ||
    { echo "FAILED: $1"; tail -3 "log-${1##*name=}.txt"; }
}
export -f train
tr '\n' '\0' < commands.txt | xargs -0 -P "${JOBS:-4}" -I{} bash -c 'train "{}"' | grep FAILED -A3 || true
python3 "$here/curves.py" $(dirname runs/*/run.json) --commands commands.txt \
  --json "$output/methods-nano.json"
