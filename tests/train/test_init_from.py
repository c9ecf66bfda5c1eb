"""init_from: a run starts with the weights of a Hugging Face folder or of a run, at their loss."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from questtrain.cli.main import main
from questtrain.config.loading import read_config
from questtrain.data import Loader, prepare, validation_batches
from questtrain.inference import load_run
from questtrain.model import Llama
from questtrain.model.huggingface import hf_names
from questtrain.scaling.points import law_points
from questtrain.scaling.runs import read_runs
from questtrain.store.checkpoint import checkpoint_folders
from questtrain.store.files import sha256_of
from tests.train.test_run import same_run
from tests.training_data import TINY, rows

RUN = (
    *(word for word in TINY if not word.startswith("model")),
    "max_steps=6", "log_every=1", "eval_every=3", "checkpoint_every=2", "lr=1e-3",
)  # fmt: skip
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}


def without(corpus: list[str], *keys: str) -> list[str]:
    return [word for word in corpus if word.partition("=")[0] not in keys]


@pytest.fixture(scope="module")
def hf_model():
    """A Llama of transformers with weights that are not small, so that its loss is its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


@pytest.fixture(scope="module")
def hf_folder(hf_model, corpus, tmp_path_factory) -> Path:
    """That model as transformers saves it, with the corpus' tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "small-llama"
    hf_model.save_pretrained(folder)
    (source,) = (word.partition("=")[2] for word in corpus if word.startswith("data.tokenizer="))
    shutil.copy(source, folder / "tokenizer.json")
    return folder


@pytest.fixture
def train(corpus, tmp_path, capsys):
    """Run `questtrain train init_from=… WORDS name=run` here; returns code, folder and errors."""

    def run(init_from: Path | str, *words: str, name: str = "run") -> tuple[int, Path, str]:
        data = without(corpus, "data.tokenizer")
        given = [f"init_from={init_from}", *words, f"runs_dir={tmp_path / 'runs'}", f"name={name}"]
        code = main(["train", *RUN, *data, *given])
        return code, tmp_path / "runs" / name, capsys.readouterr().err

    return run


def batches(run: Path):
    """The windows that the run validates on."""
    config = read_config(run / "config.yaml")
    validation = prepare(config.data, tokens_needed=1).validation
    length, tokens = config.sequence_length, config.train.validation_tokens
    return validation_batches(validation, config.micro_batch_size, length, tokens)


@torch.no_grad()
def mean_loss(logits_of, run: Path) -> float:
    total = count = 0.0
    for rows_BT in batches(run):
        tokens = torch.from_numpy(rows_BT)
        logits = logits_of(tokens[:, :-1])
        total += float(
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        )
        count += tokens[:, 1:].numel()
    return total / count


def logits(model):
    """What a model of transformers' gives, as ours do."""
    return lambda tokens: model(tokens).logits


def first_loss(run: Path) -> float:
    step, loss = rows(run, "val_loss")[0]
    assert step == 0
    return loss


def test_an_hf_model_starts_at_its_own_loss(train, hf_folder, hf_model):
    code, run, _ = train(hf_folder, "bits=bf16")
    assert code == 0
    assert first_loss(run) == pytest.approx(mean_loss(logits(hf_model), run), abs=1e-4)
    assert first_loss(run) > 6.3, "above the loss of a model that knows nothing"
    record = json.loads((run / "run.json").read_text())
    assert record["init_from"] == str(hf_folder)
    assert record["init_sha256"] == sha256_of(hf_folder / "model.safetensors")
    assert (record["model"], record["tokenizer"][:14]) == ("82.24k", "tokenizer.json")


FAMILY = {
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 32},
    "llama": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILY)
def test_relatives_of_llama(train, hf_folder, tmp_path, kind):
    """Fewer heads of keys and values, a tied head, biases, norms of Q and K, scaled rotary ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(2)
    config = AutoConfig.for_model(kind, **SHAPE, **FAMILY[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # transformers begins with zeros
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "folder")
    shutil.copy(hf_folder / "tokenizer.json", tmp_path / "folder")
    code, run, errors = train(tmp_path / "folder", "bits=bf16", "max_steps=1")
    assert code == 0, errors
    assert first_loss(run) == pytest.approx(mean_loss(logits(model), run), abs=1e-4)
    code, run, errors = train(run, "bits=w4a4", "max_steps=1", name="next")
    assert code == 0, errors


@pytest.mark.parametrize("words", [("bits=w4a16",), ("bits=w4a4",), ("bits=w4a4", "method=lsq")])
def test_a_quantized_run_starts_at_the_quantized_model_s_loss(train, hf_folder, hf_model, words):
    """The weights in the file, each quantized as a layer of the format does it; learned scales
    start from the first rows of the training data."""
    code, run, _ = train(hf_folder, *words)
    assert code == 0
    config = read_config(run / "config.yaml")
    model = Llama(config.model, config.bits, config.quant)
    weights = load_file(hf_folder / "model.safetensors")
    named = {ours: weights[theirs] for ours, theirs in hf_names(config.model).items()}
    model.load_state_dict(named, strict=False)
    first = Loader(prepare(config.data, tokens_needed=1).train, config.batch_size, 32, config.seed)
    model(torch.from_numpy(first.batch(0))[:, :-1])
    assert first_loss(run) == pytest.approx(mean_loss(model, run), abs=1e-4)
    assert first_loss(run) != pytest.approx(mean_loss(logits(hf_model), run), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_in_16_bits(train, hf_model, hf_folder, corpus, tmp_path, dtype):
    """Split over files, stored in few bits: the values are the stored ones."""
    small = copy.deepcopy(hf_model).to(dtype)
    folder = tmp_path / "sharded"
    small.save_pretrained(folder, max_shard_size="60KB")
    shutil.copy(hf_folder / "tokenizer.json", folder)
    assert len(list(folder.glob("model-0*.safetensors"))) > 2
    code, run, _ = train(folder, "bits=bf16")
    assert code == 0
    # read again in fp32: a cast of the model has rounded its rotary frequencies, too
    stored = type(hf_model).from_pretrained(folder, dtype=torch.float32)
    expected = mean_loss(logits(stored), run)
    assert first_loss(run) == pytest.approx(expected, abs=1e-4)
    assert len(json.loads((run / "run.json").read_text())["init_sha256"]) == 64


def test_from_a_run_of_other_bits_and_method(train, hf_folder, tmp_path):
    """Weights of its newest checkpoint, its model's shape and name, nothing of its scales."""
    code, first, _ = train(hf_folder, "bits=w4a4", "method=lsq", name="first")
    assert code == 0
    code, second, _ = train(first, "bits=bf16", "schedule=wsd", name="second")
    assert code == 0
    record = json.loads((second / "run.json").read_text())
    newest = checkpoint_folders(first)[-1] / "model.safetensors"
    assert record["init_sha256"] == sha256_of(newest)
    assert json.loads((second / "initial_weights.json").read_text())["step"] == 6
    model = load_run(second, "cpu").model
    model.load_state_dict(
        {k: v for k, v in load_file(newest).items() if "quantizer" not in k}, strict=False
    )
    assert first_loss(second) == pytest.approx(mean_loss(model, second), abs=1e-4)
    assert read_config(second / "config.yaml").model == read_config(first / "config.yaml").model


def test_from_a_packed_export(train, hf_folder, tmp_path, capsys):
    """The values that its codes stand for: with unquantized activations they are the model."""
    code, first, _ = train(hf_folder, "bits=w4a16", name="first")
    assert code == 0
    export = tmp_path / "export"
    words = [f"run={first}", "format=packed", f"output={export}", "verify=false"]
    assert main(["export", *words]) == 0, capsys.readouterr().err
    shutil.rmtree(first)
    code, second, errors = train(export, "bits=bf16", name="second")
    assert code == 0, errors
    expected = mean_loss(load_run(export, "cpu").model, second)
    assert first_loss(second) == pytest.approx(expected, abs=1e-4)
    facts = json.loads((second / "initial_weights.json").read_text())
    assert (facts["kind"], facts["step"]) == ("packed", 6)
    weights = export / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9] + bytes(9))
    code, third, errors = train(export, "bits=bf16", name="third")
    assert code == 2
    assert "model.safetensors does not match its checksum" in errors
    assert not third.exists()


def test_it_goes_on_without_the_folder_and_equals_the_unbroken_run(train, hf_folder, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(hf_folder, folder)
    _, whole, _ = train(folder, "bits=w4a4", name="whole")
    _, run, _ = train(folder, "bits=w4a4")
    (run / "run.json").unlink()
    shutil.rmtree(checkpoint_folders(run)[-1])
    shutil.rmtree(folder)
    code, _, errors = train(folder, "bits=w4a4")
    assert code == 0, errors
    same_run(whole, run)
    records = [json.loads((one / "run.json").read_text()) for one in (whole, run)]
    assert records[0]["init_sha256"] == records[1]["init_sha256"]
    code, _, errors = train(folder, "bits=w4a4", name="another")
    assert code == 2
    assert str(folder) in errors


def test_a_default_name_finds_its_run_again_without_the_folder(corpus, hf_folder, tmp_path, caplog):
    folder = tmp_path / "there"
    shutil.copytree(hf_folder, folder)
    words = [
        *RUN,
        *without(corpus, "data.tokenizer"),
        f"init_from={folder}",
        f"runs_dir={tmp_path / 'r'}",
    ]
    assert main(["train", *words]) == 0
    (name,) = (path.name for path in (tmp_path / "r").iterdir())
    assert name.startswith("82.24k-w4a4-quest-text-")
    assert "init_from_" in name
    shutil.rmtree(folder)
    caplog.clear()
    assert main(["train", *words]) == 0
    assert f"{name} is already complete" in caplog.text


def test_switch_and_init_from_together(train, hf_folder, hf_model):
    """Full precision first, from weights that exist."""
    code, run, _ = train(hf_folder, "bits=w4a4", "switch_at=0.5")
    assert code == 0
    assert first_loss(run) == pytest.approx(mean_loss(logits(hf_model), run), abs=1e-4)


def test_the_law_leaves_it_out(train, hf_folder):
    _, run, _ = train(hf_folder, "bits=bf16")
    runs = read_runs([str(run)])
    with pytest.raises(Exception, match="starts from the weights of"):
        law_points(runs)


def test_the_model_s_own_words_may_agree(train, hf_folder):
    code, run, _ = train(hf_folder, "model.hidden_size=64", "model.name=mine", "seed=3")
    assert code == 0
    assert read_config(run / "config.yaml").model.name == "mine"
