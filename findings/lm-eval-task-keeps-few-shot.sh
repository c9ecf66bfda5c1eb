#!/usr/bin/env bash
# lm-evaluation-harness 0.4.13: a loaded task that is given to simple_evaluate a second time is no longer as its file says.
# The first call, with num_fewshot=None, writes 0 into the task where the file names no number of examples; the second, with
# num_fewshot=2, takes that 0 for the file's own word and asks without examples. Only a line of the log says so.
# Loading a task also leaves Python's global random state elsewhere than before.
# Seen: "None then 2: 0 and 0 examples; 2 at once: 2; random state kept: False".
set -euo pipefail
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
python3 -m venv "$w/venv"
"$w/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 lm_eval==0.4.13 transformers==5.24.0 2>/dev/null
cd "$w" && mkdir tasks && HF_HOME="$w/hub" HF_HUB_OFFLINE=1 "$w/venv/bin/python" 2>/dev/null - <<'P'
import json
import random
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

RIVERS = [("Ouse", "York"), ("Cam", "Cambridge"), ("Isis", "Oxford")]
Path("rivers.jsonl").write_text("".join(json.dumps({"river": r, "town": t}) + "\n" for r, t in RIVERS))
towns = json.dumps([town for _, town in RIVERS])
Path("tasks/rivers.yaml").write_text(f"""
task: rivers
dataset_path: json
dataset_kwargs: {{data_files: {{test: rivers.jsonl}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{river}}}} flows through"
doc_to_choice: {towns}
doc_to_target: "{{{{town}}}}"
metric_list: [{{metric: acc}}]
""")


class Listener(LM):
    def __init__(self):
        super().__init__()
        self.prompts = []

    def loglikelihood(self, requests):
        self.prompts += [request.args[0] for request in requests]
        return [(-1.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests):
        return [0.0 for _ in requests]

    def generate_until(self, requests):
        return ["" for _ in requests]


manager = TaskManager(include_path="tasks", include_defaults=False)


def load():
    loaded = manager.load_task_or_group("rivers")
    return loaded["rivers"]


def examples(task, num_fewshot):
    listener = Listener()
    simple_evaluate(listener, tasks=[task], num_fewshot=num_fewshot, bootstrap_iters=0, task_manager=manager)
    return listener.prompts[0].count("flows through") - 1


random.seed(3)
before = random.getstate()
task = load()
kept = random.getstate() == before
first, second = examples(task, None), examples(task, 2)
seen = f"None then 2: {first} and {second} examples; 2 at once: {examples(load(), 2)}; random state kept: {kept}"
print(seen)
assert seen == "None then 2: 0 and 0 examples; 2 at once: 2; random state kept: False"
P
