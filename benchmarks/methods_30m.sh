#!/usr/bin/env bash
# QuEST, LSQ, PACT and STE at W4A4 on 30M: the corpus, steps and seeds of corpus.sh, a shorter
# figure 11.
#   benchmarks/methods_30m.sh WORK CORPUS OUTPUT
# CORPUS holds train.bin, val.bin and tokenizer.model. JOBS runs at a time (4) on GPUS GPUs (1).
set -euo pipefail
work=$1 corpus=$(realpath "$2") output=$3
here=$(cd "$(dirname "$0")" && pwd)
export QUESTTRAIN_CACHE=$work/cache GPUS=${GPUS:-1}
mkdir -p "$work"
cd "$work"
ln -sfn "$corpus" corpus
data="data=tokens data.files=corpus/train.bin data.validation_files=corpus/val.bin
  data.tokenizer=corpus/tokenizer.model"
python3 -m questtrain.cli.main data prepare model=30M $data > data.txt
configurations=(
  "quest method=quest"
  "lsq-1.0 method=lsq quant.lr_scale=1.0"
  "lsq-0.01 method=lsq quant.lr_scale=0.01"
  "pact-0.1 method=pact quant.lr_scale=0.1"
  "ste method=ste"
)
for seed in 0 1 2; do
  for configuration in "${configurations[@]}"; do
    read -r name settings <<< "$configuration"
    echo questtrain train model=30M bits=w4a4 $settings seed=$seed $data batch_size=64 \
      max_steps=500 eval_every=100 checkpoint_every=500 train.validation_tokens=1179648 \
      name=w4a4-$name-seed$seed
  done
done > commands.txt
train() {
  export CUDA_VISIBLE_DEVICES=$(($1 % GPUS))
  local command=$2 log="log-${2##*name=}.txt"
  python3 -m questtrain.cli.main ${command#questtrain } > "$log" 2>&1 ||
    { echo "FAILED: $command"; tail -3 "$log"; }
}
export -f train
nl -ba -w1 -s' ' commands.txt | tr '\n' '\0' |
  xargs -0 -P "${JOBS:-4}" -I{} bash -c 'line="{}"; train "${line%% *}" "${line#* }"'
python3 "$here/curves.py" $(dirname runs/*/run.json) --commands commands.txt \
  --json "$output/methods-30M.json"
