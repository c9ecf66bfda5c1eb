"""Words of the command line → typed config, or one clear message and exit code 2."""

import pytest
import yaml

from questtrain.cli.arguments import parse_arguments, train_config
from questtrain.cli.main import main
from tests.training_data import questtrain


def config(*words):
    return train_config(parse_arguments(words))


ROTATED_INPUT = "quant.activation_rotation=hadamard"
BAD_INPUT = [
    (["model=110M"], ["unknown model '110M'", "30M, 50M, 100M", "Did you mean '100M'?"]),
    (["bits=w4a44"], ["unknown bits 'w4a44'", "1, 1.58, 2, 3, 4", "Did you mean 'w4a16'?"]),
    (["bits=w4-a4"], ["unknown bits", "w<W>a<A>", "Did you mean 'w4a4'?"]),
    (["method=qest"], ["unknown method 'qest'", "Did you mean 'quest'?"]),
    (["data=stdlb"], ["unknown data 'stdlb'", "c4", "Did you mean 'stdlib'?"]),
    (["optim=adam"], ["unknown optim 'adam'", "Did you mean 'adamw'?"]),
    (["schedule=cos"], ["unknown schedule 'cos'", "Did you mean 'cosine'?"]),
    (["logger=wnb"], ["unknown logger 'wnb'", "Did you mean 'wandb'?"]),
    (["metod=quest"], ["unknown setting 'metod'", "Did you mean 'method'?"]),
    (["optim.beta=1"], ["unknown setting 'optim.beta'", "Did you mean 'optim.beta2'?"]),
    (["+nonsense=1"], ["unknown setting 'nonsense'"]),
    (["lr=fast"], ["lr='fast' must be a number"]),
    (["batch_size=7.5"], ["batch_size=7.5 must be a whole number"]),
    (["bits"], ["'bits' is not a setting", "key=value"]),
    ([""], ["'' is not a setting"]),
    (["bits"], ["such as bits=w4a4."]),
    (["--model=30M"], ["unknown option '--model=30M'", "key=value"]),
    (["--cfg", "hydra"], ["--cfg hydra is not known"]),
    (["quant.skip=[a"], ["cannot read the setting 'quant.skip=[a'"]),
    (["data=[c4,text]"], ["one choice of data"]),
    (["data=text"], ["data.files is not set"]),
    (["~lr"], ["lr is not set"]),
    (["lr=${nothing}"], ["nothing"]),
    (["model.hidden_size=100"], ["no multiple of 16", "96 and 112"]),
    (["model.num_heads=3"], ["does not divide", "the nearest that does is 2"]),
    (["micro_batch_size=100"], ["does not divide batch_size=512", "is 128"]),
    (["max_steps=0"], ["max_steps=0 must be at least 1 and at most 1e9"]),
    (["tokens_per_param=0.0001"], ["fewer tokens than one batch"]),
    (["resume=maybe"], ["unknown resume 'maybe'", "auto, never, must"]),
    (["quant.hadamard_block=100"], ["power of two", "the nearest is 128"]),
    (["quant.weight_rotation=none", ROTATED_INPUT], ["rotated operand with an unrotated one"]),
    (["--config-dir", "/nowhere/at/all"], ["/nowhere/at/all is not a folder"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD_INPUT, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_message_and_exit_code_2(words, parts, capsys):
    """What, where, the valid choices, the nearest one; on stderr, and nothing on stdout."""
    assert main(["train", *words, "--cfg", "job"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for part in parts:
        assert part in captured.err


def test_bad_input_has_no_traceback_in_a_real_process():
    result = questtrain("train", "model=110M")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_an_unknown_device(capsys, corpus):
    assert main(["train", *corpus, "model=nano", "device=gpu"]) == 2
    assert "choose auto, cpu, cuda or cuda:N" in capsys.readouterr().err


def test_sizes_bring_their_recipe_and_the_command_line_has_the_last_word():
    assert config("model=800M").lr == 7.5e-5
    assert config("model=nano").batch_size == 8
    assert config("model=nano", "batch_size=16", "lr=1").batch_size == 16
    assert config("lr=1", "model=nano").lr == 1.0, "order does not matter"
    assert config("bits=bf16").bits == config("bits=w16a16").bits == "bf16"


def test_settings_that_a_group_file_leaves_out_can_be_given():
    assert config("model.vocab_size=77").model.vocab_size == 77
    assert config("model.intermediate_size=512").model.intermediate_size == 512
    assert config("data=stdlib", "data.num_workers=3").data.num_workers == 3


@pytest.mark.parametrize("value", ["a b", "it's", "back\\slash\\", "f(x)=[1,{2}]", "${x}", "ü*?"])
def test_names_are_taken_literally(value):
    """Hydra's grammar does not get to interpret names, paths and prompts."""
    assert config(f"name={value}").name == value
    assert config("data=text", f"data.files={value}", "data.tokenizer=t").data.files == [value]


def test_lists_of_files_stay_lists():
    files = config("data=text", "data.files=[a.txt,b.txt]", "data.tokenizer=t").data.files
    assert files == ["a.txt", "b.txt"]


def test_default_names_tell_runs_apart():
    base = ["model=100M"]
    assert config(*base).name == "100M-w4a4-quest-c4-100tpp-seed0"
    assert config(*base, "bits=bf16").name == "100M-bf16-c4-100tpp-seed0"
    for words in (["switch_at=0.6"], ["switch_at=0.60", "switch_from=w16a16"]):
        assert config(*base, *words).name == "100M-bf16@0.6-w4a4-quest-c4-100tpp-seed0"
    variants = [
        ["seed=1"],
        ["lr=1e-3"],
        ["optim.weight_decay=0.2"],
        ["quant.trust_scale=1.2"],
        ["schedule=wsd"],
        ["tokens_per_param=50"],
        ["max_steps=7"],
        ["quant.skip=[lm_head]"],
        ["quant.skip=[lm_head,'layers.0.*']"],
    ]
    names = {config(*base, *words).name for words in variants}
    assert len(names) == len(variants)
    assert config(*base, "device=cpu", "log_every=3", "resume=must").name == config(*base).name
    assert all("/" not in name and " " not in name for name in names)


def test_cfg_job_prints_the_resolved_config(capsys):
    """What it prints is YAML, and giving it back as settings changes nothing."""
    assert main(["train", "model=30M", "--cfg", "job", "bits=w2a2"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["bits"] == "w2a2"
    assert printed["model"]["hidden_size"] == 640
    assert printed["quant"]["hadamard_block"] == 128


def test_a_size_of_ones_own(tmp_path, capsys):
    """`--config-dir`: one YAML file adds a size, and the messages know it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "5M.yaml").write_text(
        "# @package _global_\n"
        "model: {name: 5M, nominal_params: 5_000_000, num_layers: 3, hidden_size: 256,"
        " num_heads: 4}\nlr: 2.0e-3\n"
    )
    mine = config("--config-dir", str(tmp_path), "model=5M")
    assert (mine.model.num_layers, mine.lr) == (3, 2e-3)
    assert main(["train", "--config-dir", str(tmp_path), "model=6M", "--cfg", "job"]) == 2
    assert "3M, 5M, 7M, 17M, 30M" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "serve", "generate", "export", "diagnose"])
def test_the_folder_of_a_run_belongs_behind_run(command, tmp_path, monkeypatch, capsys):
    """And the example of any other word is one that the command takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").touch()
    assert main([command, "first"]) == 2
    assert (
        "'first' is not a setting but a run's folder: write run=first." in capsys.readouterr().err
    )
    assert main([command, "second"]) == 2
    error = capsys.readouterr().err
    assert "'second' is not a setting: write key=value, such as run=runs/first." in error


@pytest.mark.parametrize(
    ("command", "meant"), [("frob", None), ("evl", "eval"), ("benhc", "bench")]
)
def test_only_what_is_near_is_suggested(command, meant, capsys):
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert (f"Did you mean {meant!r}?" in error) == (meant is not None)
    assert ("Did you mean" in error) == (meant is not None)
