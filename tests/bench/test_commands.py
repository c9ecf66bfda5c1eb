"""`questtrain bench` on tiny shapes on the CPU: files, tables, pictures, refusals."""

from __future__ import annotations

import json

import pytest
import torch

from questtrain.bench.layer import block as bench_block
from questtrain.bench.layer.bf16_block import Bf16Block
from questtrain.bench.layer.block import BlockBenchmark
from questtrain.bench.layer.random_tensors import Format
from questtrain.bench.settings import ServeLoadConfig
from questtrain.cli import bench
from questtrain.cli.arguments import Arguments, own_config
from questtrain.cli.main import main
from questtrain.config import ModelConfig
from questtrain.kernels import cpu_library

ENVIRONMENT = {
    "device",
    "cpu",
    "cpu_instructions",
    "cpu_product",
    "threads",
    "device_memory_bytes",
    "driver_version",
    "power_limit_watts",
    "cuda_version",
    "torch_version",
    "python_version",
    "questtrain_version",
    "git_revision",
    "kernels_source_hash",
    "command",
    "date",
}
QUICK = ("rounds=2", "device=cpu")
LAYER = ("layer", "models=nano", "milliseconds=0.1", *QUICK)
TRAIN = ("models=nano", "batch_size=4", "sequence_length=16", "vocab_size=64", "steps=4", *QUICK)
SMALL = ("models=nano", "batch_sizes=[1,2]", "vocab_size=64", "layers=1", "compile=false", *QUICK)


def run(tmp_path, *words):
    """The record that a benchmark wrote, its general parts checked, and its picture's bytes."""
    output = tmp_path / "out" / "result.json"
    assert main(["bench", *words, f"output={output}"]) == 0
    record = json.loads(output.read_text())
    assert set(record) == {
        "benchmark",
        "environment",
        "settings",
        "ceilings",
        "rows",
        "complete",
    }
    assert set(record["environment"]) == ENVIRONMENT
    library = cpu_library.load()  # None: the references ran
    assert record["environment"]["kernels_source_hash"] == library.source_hash
    assert (record["environment"]["cpu_product"] == "torch") == (not library.loaded)
    assert record["environment"]["command"].startswith(f"questtrain bench {words[0]} models=nano")
    assert record["complete"]
    assert record["settings"]["device"] == "cpu"
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in record["rows"])
    if any("speedup" in row for row in record["rows"]):
        assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    else:
        assert not output.with_suffix(".png").exists()
    return record


def cases(rows, **what):
    return {row["case"]: row for row in rows if all(row.get(key) == v for key, v in what.items())}


def test_layer_measures_all_parts(tmp_path, capsys):
    record = run(tmp_path, *LAYER, "tokens=[17,100]")
    rows = record["rows"]
    assert {"copy_gbps", "bf16_tops", "int8_tops", "timings"} <= set(record["ceilings"])
    few = cases(rows, part="products", linear="gate_up", tokens=17)
    assert set(few) == {
        "bf16", "int8", "packed-4", "packed-2", "packed-1", "quest", "no-hadamard"
    }  # fmt: skip
    assert (few["int8"]["n"], few["int8"]["k"]) == (1024, 128)
    ratio = few["bf16"]["median"] / few["quest"]["median"]
    assert few["quest"]["speedup"] == pytest.approx(ratio)
    operations = 2 * 17 * 1024 * 128
    assert few["int8"]["tops"] == pytest.approx(operations / few["int8"]["median"] / 1e6)
    many = cases(rows, part="products", linear="down", tokens=100)
    assert set(many) == {"bf16", "int8", "quest", "no-hadamard"}
    block = cases(rows, part="block", tokens=17)
    assert {case: row["weights"] for case, row in block.items()} == {
        "bf16 products": "bf16",
        "bf16 block": "bf16",
        "linears": "packed",
        "linears no-hadamard": "packed",
        "linears int8": "int8",
        "block": "packed",
    }
    many = cases(rows, part="block", tokens=100)
    assert set(many) == set(block) - {"linears int8"} | {"linears packed"}
    assert (many["linears"]["weights"], many["linears packed"]["weights"]) == ("int8", "packed")
    assert {row["case"] for row in rows if row["part"] == "quantizers" and row["k"] == 512} == {
        "hadamard", "no-hadamard", "hadamard packed", "swiglu"
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "nano, W4A4: the four linears of a block" in shown
    assert "over BF16 block" in shown


def test_what_the_blocks_are_compared_with(tmp_path):
    """Linears with the bare products; a block with a block as well."""
    rows = cases(run(tmp_path, *LAYER, "tokens=4", "parts=block")["rows"])
    for case, row in rows.items():
        ratio = rows["bf16 products"]["median"] / row["median"]
        assert row["speedup"] == pytest.approx(ratio)
        assert ("block_speedup" in row) == (case in ("bf16 block", "block"))
    ratio = rows["bf16 block"]["median"] / rows["block"]["median"]
    assert rows["block"]["block_speedup"] == pytest.approx(ratio)


def test_what_the_linears_compute():
    """Four products of the same rows: ours are those of its operands, quantized one by one."""
    torch.manual_seed(0)
    model, formats = ModelConfig("tiny", 1, 1, 128, 2, intermediate_size=256), Format(2, 16)
    block = BlockBenchmark(model, formats, Bf16Block(torch.device("cpu")))
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in (("mm", torch), ("hadamard_linear", bench_block)):
            results[name] = []
            patch.setattr(module, name, recorded(getattr(module, name), results[name]))
        every = block.cases(3)
        for case in ("bf16 products", "linears"):
            every[case][0]()
    for exact, ours in zip(results["mm"], results["hadamard_linear"], strict=True):
        similarity = torch.cosine_similarity(exact.flatten(), ours.flatten(), dim=0)
        assert similarity > 0.7  # 1-bit weights keep √(2/π) = 0.8 of a Gaussian's direction


def recorded(function, log):
    def call(*arguments):
        log.append(function(*arguments))
        return log[-1]

    return call


def test_bytes_of_the_quantizers(tmp_path):
    """bf16 read, one byte a code or half of one written, a scale and a sum a row."""
    rows = run(tmp_path, *LAYER, "tokens=32", "parts=quantizers")["rows"]
    narrow, wide = cases(rows, k=128), cases(rows, k=512)
    extra = 32 * 8
    assert narrow["hadamard"]["bytes"] == 32 * 128 * 3 + extra
    assert narrow["hadamard packed"]["bytes"] == 32 * 128 * 5 // 2 + extra
    assert narrow["add_rmsnorm"]["bytes"] == 32 * 128 * 7 + extra
    assert wide["swiglu"]["bytes"] == 32 * 512 * 5 + extra


def test_few_bit_weights(tmp_path, capsys):
    """Several formats in one run: BF16 is measured beside each."""
    formats = ("w1a4", "w1.58a4", "w2a4")
    words = ("tokens=[2,65]", "parts=[block,products]", f"bits=[{','.join(formats)}]")
    rows = run(tmp_path, *LAYER, *words)["rows"]
    shown = capsys.readouterr().out
    for bits in formats:
        block = cases(rows, part="block", tokens=2, bits=bits)
        assert block["linears"]["weights"] == "packed"
        ratio = block["bf16 products"]["median"] / block["linears"]["median"]
        assert block["linears"]["speedup"] == pytest.approx(ratio)
        assert f"nano, {bits.upper()}: one linear" in shown


def test_six_bit_weights_cannot_be_packed_but_measured(tmp_path):
    rows = run(tmp_path, *LAYER, "tokens=[2,65]", "parts=[block,products]", "bits=w6a6")["rows"]
    for tokens in (2, 65):
        block = cases(rows, part="block", tokens=tokens)
        assert block["linears"]["weights"] == "int8"
        assert not set(block) & {"linears int8", "linears packed"}


def test_prefill(tmp_path, capsys):
    record = run(tmp_path, "prefill", *SMALL, "sequence_length=16", "milliseconds=0.1")
    rows = cases(record["rows"], batch_size=2)
    assert set(rows) == {"bf16", "w4a4", "w4a4, INT8 kept"}
    row = rows["w4a4"]
    assert row["tokens_per_second"] == pytest.approx(32e6 / row["median"])
    assert row["layers"] == 1
    assert "prefill of 16 tokens" in capsys.readouterr().out


def test_decode(tmp_path, capsys):
    record = run(tmp_path, "decode", *SMALL, "context=8", "steps=2", "bits=[w4a4,w2a4]")
    rows = cases(record["rows"], batch_size=1)
    assert set(rows) == {"bf16", "w4a4", "w2a4"}
    assert rows["bf16"]["speedup"] == 1
    assert rows["w2a4"]["tokens_per_second"] == pytest.approx(1e6 / rows["w2a4"]["median"])
    assert "decoding" in capsys.readouterr().out


def test_decode_leaves_out_what_does_not_fit(tmp_path, monkeypatch, caplog):
    from questtrain.bench.model import decode

    measure = decode.measure_steps

    def limited(models, prompt, *arguments):
        if prompt.shape[0] > 1:
            raise torch.OutOfMemoryError
        return measure(models, prompt, *arguments)

    monkeypatch.setattr(decode, "measure_steps", limited)
    record = run(tmp_path, "decode", *SMALL, "context=8", "steps=2", "bits=w4a4")
    assert {row["batch_size"] for row in record["rows"]} == {1}
    assert "nano, batch 2: does not fit into memory" in caplog.text


def test_train(tmp_path, capsys):
    cases = 'cases=[w4a4,"w2a2 micro_batch_size=2"]'
    record = run(tmp_path, "train", *TRAIN, cases, "overrides=['optim.beta1=0.8']")
    rows = {row["case"]: row for row in record["rows"]}
    assert list(rows) == ["plain", "bf16", "w4a4", "w2a2 micro_batch_size=2"]
    assert [row["micro_batch_size"] for row in rows.values()] == [4, 4, 4, 2]
    assert {row["samples"] for row in rows.values()} == {4}
    shown = capsys.readouterr().out
    assert "nano: an optimizer step" in shown
    assert "w2a2 micro_batch_size=2" in shown


def test_cases_of_a_training_step():
    """Large models take fewer tokens at once; a case's own settings come last."""
    from questtrain.bench.settings import TrainStepConfig
    from questtrain.cli.arguments import Arguments, own_config
    from questtrain.cli.bench_models import training_cases

    words = [
        "models=[800M,100M]",
        "cases=[W4A4,'w4a4 train.keep_checkpoints=3']",
        "overrides=['train.keep_checkpoints=2']",
    ]
    config = own_config(Arguments(overrides=words), "bench_train", TrainStepConfig)
    models = training_cases(config)
    cases = models["800M"]
    kept = {case: typed.train.keep_checkpoints for case, typed in cases.items()}
    assert kept == {"bf16": 2, "w4a4": 2, "w4a4 train.keep_checkpoints=3": 3}
    assert {typed.micro_batch_size for typed in cases.values()} == {32}
    assert {typed.batch_size for typed in cases.values()} == {64}
    assert cases["w4a4"].model.vocab_size == 32_000
    assert models["100M"]["bf16"].micro_batch_size == 64


def test_json_is_the_file(tmp_path, capsys):
    record = run(tmp_path, *LAYER, "tokens=4", "parts=block", "--json")
    assert json.loads(capsys.readouterr().out) == record


def test_what_was_measured_survives(tmp_path, monkeypatch, caplog):
    """Every finished shape is there when a later one ends the run, and so is what an earlier run
    has measured."""
    measure = BlockBenchmark.measure

    def interrupted(self, tokens, *arguments):
        if tokens == 3:
            raise KeyboardInterrupt
        return measure(self, tokens, *arguments)

    monkeypatch.setattr(BlockBenchmark, "measure", interrupted)
    output = tmp_path / "result.json"
    words = (*LAYER, "tokens=[2,3]", "parts=block", f"output={output}")
    output.write_text("earlier")
    assert main(["bench", *words]) == 130
    assert output.read_text() == "earlier"
    output = tmp_path / "result.unfinished.json"
    record = json.loads(output.read_text())
    assert {row["tokens"] for row in record["rows"]} == {2}
    assert not record["complete"]
    assert f"{len(record['rows'])} rows are kept in {output}" in caplog.text


def test_a_complete_file_is_alone(tmp_path):
    run(tmp_path, *LAYER, "tokens=2", "parts=block")
    assert not list(tmp_path.glob("*.unfinished.json"))


def test_a_folder_is_no_file(tmp_path, capsys):
    assert main(["bench", *LAYER, "tokens=2", "parts=block", f"output={tmp_path}"]) == 2
    assert f"{tmp_path} cannot be written: it is a folder" in capsys.readouterr().err


def test_a_shape_too_large_for_memory_is_left_out(tmp_path, caplog):
    record = run(tmp_path, *LAYER, "tokens=[2,2_000_000_000]", "parts=block")
    assert {row["tokens"] for row in record["rows"]} == {2}
    assert "2000000000 tokens: does not fit" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layr"], "unknown benchmark 'layr'"),
        (["layer", "models=80M"], "Did you mean '800M'?"),
        (["layer", "models=[]"], "models=[]: choose from"),
        (["layer", "model=800M"], "Did you mean 'models'?"),
        (["layer", "parts=blok"], "Did you mean 'block'?"),
        (["layer", "parts=[]"], "parts=[]: choose from block"),
        (["layer", "bits=w8a8"], "dense integers of 1 to 7 bits"),
        (["layer", "bits=w4a44"], "Did you mean 'w4a16'?"),
        (["layer", "tokens=[]"], "one number or more"),
        (["layer", "tokens=[1,0]"], "tokens=0 must be at least 1"),
        (["layer", "rounds=0"], "rounds=0 must be at least 1"),
        (["layer", "milliseconds=0"], "must be positive"),
        (["layer", "milliseconds=inf"], "milliseconds=inf must be positive"),
        (["layer", "tokens=[1,3000000000]"], "tokens=3000000000 must be at least 1 and below 2^31"),
        (["layer", "device=gpu"], "choose auto, cpu, cuda"),
        (["prefill", "bits=bf16"], "always measured"),
        (["prefill", "prefill=int4"], "unknown prefill 'int4'"),
        (["decode", "layers=40"], "800M has 1 to 16"),
        (["decode", "vocab_size=0"], "must be at least 1"),
        (["serve", "bits=bf16"], "always measured"),
        (["serve", "vocab_size=8"], "a server needs 16"),
        (["serve", "clients=[]"], "one number or more"),
        (["serve", "rate=0"], "rate=0.0 must be positive"),
        (["serve", "run=none"], "none"),
        (["train", "models=7B"], "unknown model '7B'"),
        (["train", "models=[]"], "models=[]: choose from"),
        (["train", "cases=w4a44"], "Did you mean 'w4a16'?"),
        (["train", "cases=bf16"], "always measured"),
        (["train", "cases=['w4a4 train.keep=2']"], "unknown setting 'train.keep'"),
        (["train", "cases=['w4a4 bits=w2a2']"], "'bits=w2a2' cannot be a setting of a case"),
        (["train", "overrides=['model.num_layers=1']"], "all cases share it"),
        (["train", "steps=0"], "steps=0 must be at least 1"),
        (["train", "micro_batch_tokens=0"], "micro_batch_tokens=0 must be at least 1"),
        (["train", "batch_size=6", "micro_batch_tokens=2048"], "does not divide batch_size=6"),
    ],
)
def test_bad_input_is_one_message(capsys, words, message):
    assert main(["bench", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("action", ["layer", "prefill", "decode", "serve", "train"])
def test_help_names_every_setting(capsys, action):
    assert main(["bench", action, "--cfg", "job"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line[0] != "-"]
    assert main(["bench", action, "--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in names)
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize(
    ("serves", "model", "line"),
    [
        (True, "nano", "on a CPU its own kernels are measured (avx2)"),
        (True, "800M", "on a CPU its own kernels are measured (avx2); models=nano is quick"),
        (False, "nano", "on a CPU without its kernels the plain torch reference is measured"),
    ],
)
def test_what_a_cpu_measures_is_said(serves, model, line, monkeypatch):
    monkeypatch.setattr(cpu_library, "serves", lambda: serves)
    monkeypatch.setattr(cpu_library, "serving_path", lambda: "avx2")
    words = Arguments(overrides=[f"models={model}"])
    config = own_config(words, "bench_serve", ServeLoadConfig)
    assert bench._of_cpu("serve", config) == line
