#!/usr/bin/env bash
# torch 2.13.0, torchrun --nnodes=1:2 with rdzv_backend=c10d: a second agent that joins a run which has begun never gets
# in. Rank 0's agent writes MASTER_ADDR under the first round's prefix only (dynamic_rendezvous.next_rendezvous builds
# its bootstrap_store_info once), the newcomer waits for it under the second round's, and after 60 s both agents end with
# DistStoreError. With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 both train.
# Seen: "as it is: no world of 2, 2 agents failed; with the variable: a world of 2, 0 agents failed".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.0 2>/dev/null
cat > "$w/worker.py" <<'P'
import os
import pathlib
import sys
import time

folder = pathlib.Path(sys.argv[1])
(folder / f"world{os.environ['WORLD_SIZE']}").touch()
deadline = time.monotonic() + 240
while os.environ["WORLD_SIZE"] == "1" and time.monotonic() < deadline:
    time.sleep(0.1)  # until the agent ends this one, because another agent has come
P
agent() {
  "$w/venv/bin/python" -m torch.distributed.run --nnodes=1:2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_id=x \
    --rdzv_endpoint="127.0.0.1:$1" --rdzv_conf=last_call_timeout=1 "$w/worker.py" "$2" > "$2/$3.log" 2>&1
}
run() {
  local failed=0
  mkdir "$2"
  agent "$1" "$2" first & local first=$!
  for _ in $(seq 600); do [ -e "$2/world1" ] && break; sleep 0.1; done
  agent "$1" "$2" second & local second=$!
  wait "$first" || failed=$((failed + 1))
  wait "$second" || failed=$((failed + 1))
  if [ -e "$2/world2" ]; then echo "a world of 2, $failed agents failed"; else echo "no world of 2, $failed agents failed"; fi
}
plain=$(run 29631 "$w/plain")
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
variable=$(run 29632 "$w/variable")
echo "as it is: $plain; with the variable: $variable"
[ "$plain" = "no world of 2, 2 agents failed" ] && [ "$variable" = "a world of 2, 0 agents failed" ]
