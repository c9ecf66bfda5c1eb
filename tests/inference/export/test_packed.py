"""format=packed: every run bit for bit, without the run, in the bits that it needs."""

import json
import math
import weakref

import pytest
import torch

import questtrain
from questtrain.cli.main import main
from questtrain.config import parse_bits
from questtrain.inference.export.format import Options
from questtrain.inference.export.packed import PackedFormat
from questtrain.inference.export.source import Source
from questtrain.inference.export.write import export
from questtrain.inference.load import load_run
from questtrain.packed import PackedFolder, Skeleton
from questtrain.store.tensor_files import INDEX, TensorFiles
from tests.inference.export.conftest import FAMILY, MATRIX, in_format

OTHERS = {
    "fp4": {},
    "w3a8": {"quant.grid": "int"},
    "w5a16": {},
    "w7a7": {},
    "w8a8": {},
    "w4s24a4": {},
    "w8s24a16": {},
    "w16a4": {},
    "w2a2": {"quant.group_size": 64, "quant.scale_dtype": "float16"},
    "w6a16": {"quant.skip": ["lm_head", "layers.0.mlp.down_proj"]},
    "w4a8": {"quant.weight_rotation": "hadamard-back", "quant.activation_rotation": "none"},
}
"""Formats that the weights of a trained run can be given afterwards."""
LEARNED = [("w4a4", "lsq-plus"), ("w2a16", "lsq"), ("w3a3", "pact")]


def written(run, folder, options=Options()):  # noqa: B008  (it is frozen)
    """What the format writes, without a certificate."""
    folder.mkdir()
    PackedFormat().write(Source.open(run), folder, options)
    return folder


def assert_same_logits(run, folder):
    """As values, and packed where there is something to pack."""
    tokens = torch.randint(0, 500, (2, 33), generator=torch.Generator().manual_seed(1))
    packed = bool(PackedFolder.open(folder).skeleton.weights)
    for choice in (False, True) if packed else (False, None):
        ours, theirs = (questtrain.load(each, "cpu", packed=choice) for each in (run, folder))
        assert type(ours) is type(theirs)
        assert torch.equal(ours(tokens), theirs(tokens))


@pytest.mark.parametrize(("bits", "method"), MATRIX + LEARNED)
def test_a_run_bit_for_bit(bits, method, trained, tmp_path):
    run = trained(bits, method)
    assert_same_logits(run, written(run, tmp_path / "export"))


def test_the_llama_family(trained, tmp_path):
    """Fewer heads of keys and values, tied embeddings, biases and norms of Q and K, …"""
    more = {"model.qkv_bias": "true", "model.qk_norm": "true"}
    run = trained("w4a4", **FAMILY, **more)
    folder = written(run, tmp_path / "export")
    assert_same_logits(run, folder)
    names = dict(PackedFolder.open(folder).dense())
    assert "layers.1.attention.q_proj.bias" in names
    assert "layers.1.attention.k_norm.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize("bits", OTHERS)
def test_other_formats_bit_for_bit(bits, trained, tmp_path):
    run = in_format(trained("w4a4", "quest"), tmp_path / "run", bits, OTHERS[bits])
    assert_same_logits(run, written(run, tmp_path / "export"))
    source, form = Source.open(run), PackedFormat()
    for name in source.linear_names():
        codes = source.codes(name)
        values, folded = form.stored(tmp_path / "export", name)
        assert codes is None or codes.different(values, folded) == 0


def test_the_certificate(trained, tmp_path):
    """In a process of its own: no logit differs."""
    certificate = export(
        Source.open(trained("w4a4", "quest")), "packed", tmp_path / "export", Options()
    )
    assert certificate.codes_different == 0
    assert certificate.comparison.largest_logit_difference == 0
    assert certificate.not_expressed == []


@pytest.mark.usefixtures("in_this_process")
def test_what_is_no_code_in_16_bits(trained, tmp_path):
    source = Source.open(trained("w4a4", "quest"))
    certificate = export(source, "packed", tmp_path / "export", Options(dtype="bf16"))
    assert certificate.codes_different == 0
    assert 0 < certificate.comparison.median_logit_difference < 0.05
    assert "rounded to bf16" in certificate.not_expressed[0]


def test_a_code_that_differs_is_found(trained, tmp_path, monkeypatch):
    """One code of one layer, changed on the way."""
    from questtrain.inference.export.written import CertificateFailed
    from questtrain.quant import stored_weight

    right = stored_weight.pack_codes

    def wrong(codes, levels):
        codes = codes.clone()
        codes.view(-1)[0] ^= 1
        return right(codes, levels)

    monkeypatch.setattr(stored_weight, "pack_codes", wrong)
    with pytest.raises(CertificateFailed, match=r"14 of [\d,]+ weight codes differ .*q_proj"):
        export(Source.open(trained("w4a4", "quest")), "packed", tmp_path / "export", Options())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", ["w1a16", "w1.58a16", "w2a2", "w3a16", "w4a4", "w5a16", "w4s24a4"])
def test_bytes_are_within_three_percent_of_the_ideal(bits, compose, tmp_path):
    """Ideal are log2 of what a code can be, log2(6)/8 a value for the pairs of 2:4 sparsity, and
    what fp32 scales, embedding, norms and head take. A model in which those weigh little."""
    model = {"num_layers": 1, "hidden_size": 2048, "num_heads": 16, "vocab_size": 300}
    config = compose(bits=bits, model=model)
    skeleton = Skeleton(config)
    planned = skeleton.planned(torch.float32)
    written = sum(each.size for each in planned.values())
    weight = parse_bits(bits).weight
    code = math.log2(weight.levels)
    dense = skeleton.tensors(torch.float32).values()
    ideal = sum(4 * torch.Size(each.shape).numel() for each in dense)
    for name, layer in skeleton.linears.items():
        values = layer.weight.numel()
        ideal += values * (code / 2 + math.log2(6) / 8 if weight.sparse else code) / 8
        ideal += 4 * skeleton.weights[name].shape[0]
    assert 1 <= written / ideal < 1.03


def test_the_file_holds_no_more_than_planned(trained, tmp_path):
    """Beside its header, of about 100 bytes a tensor."""
    folder = written(trained("w1.58a16", "quest"), tmp_path / "export")
    config = PackedFolder.open(folder).config
    planned = Skeleton(config).planned(torch.float32)
    size = (folder / "model.safetensors").stat().st_size
    assert 0 < size - sum(each.size for each in planned.values()) < 150 * len(planned)


def test_parts(trained, tmp_path):
    """Above ``shard_bytes`` in parts, with the index that other programs know."""
    run = trained("w4a4", "quest")
    folder = written(run, tmp_path / "parts", Options(shard_bytes=200_000))
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(parts) > 3
    assert set(json.loads((folder / INDEX).read_text())["weight_map"].values()) == set(parts)
    assert set(parts) | {INDEX} < PackedFolder.open(folder).manifest.sha256.keys()
    assert_same_logits(run, folder)
    (folder / parts[1]).unlink()
    with pytest.raises(questtrain.errors.UserError, match=f"{parts[1]} is missing"):
        questtrain.load(folder, "cpu")


def test_the_command_line_takes_an_export_for_a_run(trained, tmp_path, capsys):
    run = trained("w4a4", "quest")
    words = ["format=packed", f"output={tmp_path / 'export'}", "verify=false", "device=cpu"]
    assert main(["export", f"run={run}", *words]) == 0
    capsys.readouterr()
    texts = []
    for folder in (run, tmp_path / "export"):
        words = [f"run={folder}", "prompt=def ", "max_new_tokens=12", "device=cpu", "packed=true"]
        assert main(["generate", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert main(["generate", f"run={tmp_path / 'export'}", "prompt=x", "step=1"]) == 2
    assert "is an export of step 3, not of 1." in capsys.readouterr().err
    ours, theirs = load_run(run, "cpu"), load_run(tmp_path / "export", "cpu")
    assert (ours.config, ours.step) == (theirs.config, theirs.step)
    assert ours.tokenizer.sha256 == theirs.tokenizer.sha256
    assert ours.tokenizer.bos_id == theirs.tokenizer.bos_id


def test_exporting_needs_the_memory_of_a_layer(trained, tmp_path, monkeypatch):
    """When a layer or another tensor is read, the one before it is forgotten, and what was made of
    it; nothing older is alive."""
    alive: list[weakref.ref] = []

    def watched(method):
        def watch(self, *words):
            assert sum(each() is not None for each in alive) <= 2
            result = method(self, *words)
            alive.append(weakref.ref(result if result is not None else words[-1]))
            return result

        return watch

    monkeypatch.setattr(Source, "linear", watched(Source.linear))
    monkeypatch.setattr(Source, "tensor", watched(Source.tensor))
    monkeypatch.setattr(TensorFiles, "write", watched(TensorFiles.write))
    written(trained("w4a4", "quest"), tmp_path / "export")
    assert len(alive) > 50


def test_dense_weights(trained, tmp_path):
    """Every parameter of the model by its name, fp32: what training can start from."""
    run = trained("w4a4", "quest")
    dense = dict(PackedFolder.open(written(run, tmp_path / "export")).dense())
    model = questtrain.load(trained("bf16", "quest"), "cpu")
    model.load_state_dict(dense)
    source = Source.open(run)
    for name in ("norm.weight", "embed_tokens.weight"):
        assert torch.equal(dense[name], source.tensor(name))
    name = "layers.1.mlp.down_proj"
    trained_weight = source.tensor(f"{name}.weight")
    error = (dense[f"{name}.weight"] - trained_weight).square().mean() / trained_weight.var()
    assert 0 < error < 0.02  # 4 bits of a Gaussian: 0.0115
