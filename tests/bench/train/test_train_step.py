"""What `questtrain bench train` measures: its yardstick, its cases, its profiles."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from questtrain.bench.results import Results
from questtrain.bench.settings import TrainStepConfig
from questtrain.bench.tables import tables
from questtrain.bench.train import train_step
from questtrain.bench.train.plain_llama import PlainLlama, PlainStep
from questtrain.bench.train.profile import CATEGORIES, Kernel, category, summary
from questtrain.bench.train.train_step import bench_train
from questtrain.cli.arguments import Arguments, own_config, parse_arguments, train_config
from questtrain.config import ModelConfig, QuantConfig
from questtrain.model import Llama

CPU = torch.device("cpu")
SMALL = ModelConfig("small", 1, 2, 64, 2, vocab_size=50)


def config(bits="bf16", *words):
    settings = ("model=nano", f"bits={bits}", "model.vocab_size=64", "model.num_layers=1")
    sizes = ("batch_size=4", "micro_batch_size=4", "sequence_length=16", "tokens_per_param=100")
    return train_config(parse_arguments([*settings, *sizes, *words]))


def bench(cases=("w4a4",), **models):
    """The record of a run of two turns of one step."""
    results = Results("train", {}, {}, None)
    settings = {"bf16": config(), **{case: config(case) for case in cases}}
    turns = own_config(Arguments(overrides=["steps=2", "rounds=2"]), "bench_train", TrainStepConfig)
    bench_train(results, models or {"nano": settings}, turns, CPU)
    return results.record


def test_the_yardstick_is_the_same_llama():
    ours = Llama(SMALL, "bf16", QuantConfig())
    ours.init_weights(torch.Generator().manual_seed(0))
    plain = PlainLlama(SMALL, 9, torch.float32)
    weights = {
        "embed.weight": ours.embed_tokens.weight,
        "norm.weight": ours.norm.weight,
        "head.weight": ours.lm_head.weight,
    }
    for i, block in enumerate(ours.layers):
        attention, mlp = block.attention, block.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        weights |= {
            f"blocks.{i}.attention_norm.weight": block.attention_norm.weight,
            f"blocks.{i}.qkv.weight": torch.cat([linear.weight for linear in qkv]),
            f"blocks.{i}.out.weight": attention.o_proj.weight,
            f"blocks.{i}.mlp_norm.weight": block.mlp_norm.weight,
            f"blocks.{i}.gate_up.weight": torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)),
            f"blocks.{i}.down.weight": mlp.down_proj.weight,
        }
    plain.load_state_dict({**weights, "cos": plain.cos, "sin": plain.sin})
    tokens = torch.randint(50, (3, 10), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    expected = torch.nn.functional.cross_entropy(ours(inputs).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(plain(inputs, targets), expected, rtol=1e-5, atol=1e-6)


def test_the_yardstick_accumulates_and_learns():
    """Micro-batches change nothing but rounding; the loss of one batch falls."""
    batch = np.random.default_rng(0).integers(64, size=(4, 17))
    results = []
    for micro in (4, 2):
        torch.manual_seed(0)
        step = PlainStep(replace(config(), micro_batch_size=micro), CPU)
        results.append([step(batch, 1e-3) for _ in range(3)])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    losses = [float(loss) for loss, _ in results[0]]
    assert losses == sorted(losses, reverse=True)


def test_ratios_are_of_the_same_turns():
    record = bench(["w4a4", "w2a2"])
    rows = {row["case"]: row for row in record["rows"]}
    assert list(rows) == ["plain", "bf16", "w4a4", "w2a2"]
    for row in rows.values():
        assert row["samples"] == 2
        assert row["speedup"] == pytest.approx(row["bf16_median"] / row["median"])
        relative = row["speedup"] * rows["plain"]["median"] / rows["bf16"]["median"]
        assert row["plain_speedup"] == pytest.approx(relative)
        assert row["tokens_per_second"] == pytest.approx(64e6 / row["median"])
        assert row["loss"] == pytest.approx(np.log(64), abs=0.2)  # tokens are random
    assert rows["bf16"]["speedup"] == 1
    assert rows["plain"]["plain_speedup"] == pytest.approx(1)
    assert "profiles" not in record  # a GPU's


def test_one_case_beside_bf16_at_a_time(monkeypatch):
    alive = weakref.WeakValueDictionary()
    together = []

    class Watched(train_step.Contender):
        def __init__(self, case, *arguments):
            super().__init__(case, *arguments)
            alive[case] = self.step.model
            together.append(sorted(alive))

    monkeypatch.setattr(train_step, "Contender", Watched)
    bench(["w4a4", "w2a2"])
    gc.collect()
    assert together == [["bf16"], ["bf16", "plain"], ["bf16", "w4a4"], ["bf16", "w2a2"]]
    assert not alive


@pytest.mark.parametrize(
    ("too_large", "left", "warning"),
    [
        ("w4a4", ["plain", "bf16", "w2a2"], "nano, w4a4: does not fit into memory"),
        ("plain", ["w4a4", "bf16", "w2a2"], "nano, plain: does not fit into memory"),
        ("bf16", [], "nano: does not fit into memory"),
    ],
)
def test_what_does_not_fit_is_left_out(monkeypatch, caplog, too_large, left, warning):
    class Limited(train_step.Contender):
        def __init__(self, case, *arguments):
            if case == too_large:
                raise torch.OutOfMemoryError
            super().__init__(case, *arguments)

    monkeypatch.setattr(train_step, "Contender", Limited)
    record = bench(["w4a4", "w2a2"])
    assert [row["case"] for row in record["rows"]] == left
    assert warning in caplog.text
    if too_large == "plain":
        assert {row["plain_speedup"] for row in record["rows"]} == {None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT", "BF16 products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "BF16 products"),
        (
            "void cutlass::device_kernel<cutlass::gemm::GemmUniversal<signed char, …",
            "INT8 products",
        ),
        ("void questtrain::quantize_rows<__nv_bfloat16, signed char>(…", "our kernels"),
        ("void pytorch_flash::flash_fwd_kernel<cutlass::bfloat16_t, …", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_knob_3_64x128x64", "attention"),
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<…", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, …", "elementwise"),
        ("triton_poi_fused__flash_attention_backward_mm_3", "elementwise"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("cub::DeviceRadixSortKernel", "other"),
    ],
)
def test_what_kernels_are_for(name, expected):
    assert category(name) == expected
    assert expected in CATEGORIES


def test_a_profile_adds_up():
    """Two streams overlap from 3 to 5; nothing runs from 8 to 10."""
    result = summary(
        [
            Kernel("nvjet_a", 0.0, 5.0),
            Kernel("triton_b", 3.0, 8.0),
            Kernel("nvjet_a", 10.0, 14.0),
        ]
    )
    assert result["categories"]["BF16 products"] == 9
    assert sum(result["categories"].values()) == 14
    assert (result["busy"], result["span"]) == (12, 14)
    first, second = result["kernels"]
    assert (first["name"], first["count"], first["microseconds"]) == ("nvjet_a", 2, 9)
    assert first["share"] + second["share"] == pytest.approx(1)


def test_a_profile_is_a_table(capsys):
    from questtrain.sweep.console import console

    record = bench()
    times = summary([Kernel("nvjet_a", 0.0, 5000.0), Kernel("triton_b", 6000.0, 8000.0)])
    record["profiles"] = {"nano": {"bf16": times, "w4a4": times}}
    for table in tables(record):
        console().print(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["elementwise", "2.00", "2.00"] in lines
    assert ["device", "busy", "7.00", "7.00"] in lines
