"""A trained run in use: load, sample, generate, and the messages for bad input."""

import pytest
import torch

import questtrain
from questtrain.cli.main import main
from questtrain.inference import generate_text, load_run
from questtrain.inference.generate import generate_tokens, sample
from questtrain.inference.load import for_use
from questtrain.kernels import cpu_library
from questtrain.kernels.extension import constant_when_compiled
from questtrain.model import Llama, PackedLlama
from questtrain.quant import PackedWeightLinear, QuantLinear
from questtrain.store.checkpoint import checkpoint_folders, latest_checkpoint
from tests.training_data import TINY


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    words = [*TINY, *corpus, "max_steps=12", "checkpoint_every=6", f"runs_dir={runs}", "name=run"]
    assert main(["train", *words]) == 0
    return runs / "run"


def test_load_gives_the_trained_model(run):
    """Token ids [batch, length] → logits [batch, length, vocab], equal to the training model's."""
    model = questtrain.load(run, device="cpu")
    tokens = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = model(tokens)
    assert logits.shape == (2, 9, 512)
    assert not logits.requires_grad
    trained = load_run(run, "cpu")
    training = type(model)(trained.config.model, trained.config.bits, trained.config.quant)
    latest_checkpoint(run).load_weights(training)
    assert torch.equal(logits, training(tokens).detach())
    assert any(isinstance(module, QuantLinear) for module in model.modules())


def test_greedy_decoding_with_the_cache_equals_full_forward_passes(run):
    trained = load_run(run, "cpu")
    prompt = [trained.tokenizer.bos_id, *trained.tokenizer.encode("def ")]
    cached = list(generate_tokens(trained, prompt, 12, temperature=0, top_p=1, seed=0))
    seen = list(prompt)
    for token in cached:
        assert int(trained.model(torch.tensor([seen]))[0, -1].argmax()) == token
        seen.append(token)
    assert len(cached) == 12


def test_generation_goes_on_past_the_trained_length(run):
    """The context slides when the 32 trained positions are full."""
    trained = load_run(run, "cpu")
    trained.tokenizer.bos_id = -1
    tokens = list(generate_tokens(trained, [0, 5, 6], 100, temperature=1, top_p=1, seed=3))
    assert len(tokens) == 100
    long_prompt = list(range(200))
    assert len(list(generate_tokens(trained, long_prompt, 3, 1, 1, 0))) == 3


def test_the_same_seed_gives_the_same_text(run):
    trained = load_run(run, "cpu")
    texts = ["".join(generate_text(trained, "import os", 20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(logits, 1.0, 0.7, generator) for _ in range(200)}
    assert drawn == {0, 1}
    assert {sample(logits, 1.0, 0.4, generator) for _ in range(50)} == {0}
    assert {sample(logits, 1.0, 1.0, generator) for _ in range(500)} == {0, 1, 2, 3}
    assert sample(logits, 0, 1.0, generator) == 0


def test_the_command_prints_prompt_and_continuation(run, capsys):
    prompt = "class It's(\\x): {'a': [1]}"
    assert main(["generate", f"run={run}", f"prompt={prompt}", "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_the_packed_run_generates_the_same_tokens_at_the_same_loss(run):
    """Greedy decoding in fp32 token for token; the loss within 1e-4 nats of the unpacked one."""
    plain, packed = load_run(run, "cpu"), load_run(run, "cpu", packed=True)
    assert isinstance(questtrain.load(run, "cpu", packed=True), PackedLlama)
    prompt = [plain.tokenizer.bos_id, *plain.tokenizer.encode("def ")]
    texts = [list(generate_tokens(each, prompt, 25, 0, 1, 0)) for each in (plain, packed)]
    assert texts[0] == texts[1]
    text = torch.tensor([plain.tokenizer.encode("import os\nclass A:\n    def f(self): pass")])
    losses = [
        torch.nn.functional.cross_entropy(each.model(text[:, :-1])[0], text[0, 1:])
        for each in (plain, packed)
    ]
    assert abs(losses[0] - losses[1]) < 1e-4


def test_auto_packs_on_a_cpu_where_the_library_multiplies_every_layer_as_stored(run, monkeypatch):
    """FP4 has no product of its codes: its layers stay float ones, whose weights are quantized."""
    tokens = torch.arange(9).unsqueeze(0)
    packed = questtrain.load(run, "cpu", packed=True)(tokens)
    for serves, kind in ((False, Llama), (True, PackedLlama)):
        monkeypatch.setattr(cpu_library, "serves", constant_when_compiled(lambda s=serves: s))
        model = questtrain.load(run, "cpu", packed=None)
        assert type(model) is kind
        torch.testing.assert_close(model(tokens), packed, rtol=1e-4, atol=1e-5)
    for bits, is_packed in (("fp4", False), ("w5a16", False), ("w4a16", True), ("bf16", False)):
        trained = load_run(run, "cpu").config
        model = for_use(Llama(trained.model, bits, trained.quant), torch.device("cpu"), None)
        assert any(isinstance(each, PackedWeightLinear) for each in model.modules()) == is_packed


def test_packed_by_name(run, capsys):
    words = ["generate", f"run={run}", "prompt=def", "max_new_tokens=4", "temperature=0"]
    for choice in ("auto", "true", "false"):
        assert main([*words, "device=cpu", f"packed={choice}"]) == 0
    lines = capsys.readouterr().out
    assert lines == lines[: len(lines) // 3] * 3
    assert main([*words, "packed=ture"]) == 2
    assert "Did you mean 'true'?" in capsys.readouterr().err


def test_an_older_checkpoint(run, capsys):
    steps = [int(path.name[5:]) for path in checkpoint_folders(run)]
    assert steps == [6, 12]
    assert load_run(run, "cpu", step=6).step == 6
    assert main(["generate", f"run={run}", "prompt=x", "step=7"]) == 2
    assert "no checkpoint of step 7, only [6, 12]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run={run}x", "prompt=a"], "Did you mean"),
        (["run={run}/figures", "prompt=a"], "is not a run"),
        (["prompt=a"], "run is not set"),
        (["run={run}"], "prompt is not set"),
        (["run={run}", "prompt=a", "top_p=0"], "top_p=0.0 must be positive and at most 1"),
        (
            ["run={run}", "prompt=a", "temperature=-1"],
            "temperature=-1.0 must be at least 1e-3 and at most 1e3, or 0",
        ),
        (["run={run}", "prompt=a", "max_new_tokens=0"], "at least 1"),
        (["run={run}", "promt=a"], "Did you mean 'prompt'?"),
    ],
)
def test_bad_input(run, capsys, words, part):
    assert main(["generate", *(word.format(run=run) for word in words)]) == 2
    assert part in capsys.readouterr().err
