"""The labels of precisions: made of a run, read, spelled in other ways, sorted."""

import pytest

from questtrain.scaling.precision import (
    canonical_label,
    integer_kind,
    label_of,
    label_text,
    precision_label,
    sorted_labels,
    split_label,
    weight_bits,
)


@pytest.mark.parametrize(
    ("bits", "method", "label", "text", "cost"),
    [
        ("w4a4", "quest", "4", "W4A4", 4),
        ("w1.58a1.58", "quest", "1.58", "W1.58A1.58", 1.58),
        ("bf16", "none", "16", "BF16", 16),
        ("w16a16", "lsq", "16", "BF16", 16),
        ("w2a16", "quest", "w2a16", "W2A16", 2),
        ("w3a8", "quest", "w3a8", "W3A8", 3),
        ("fp4", "quest", "fp4", "FP4", 4),
        ("w4s24a4", "quest", "w4s24a4", "INT4 2:4", 2.5),
        ("w4a4", "lsq", "4-lsq", "W4A4 LSQ", 4),
        ("w2a2", "quest-noht", "2-quest-noht", "W2A2 without Hadamard", 2),
        ("w4a4", None, "4", "W4A4", 4),
    ],
)
def test_labels(bits, method, label, text, cost):
    assert precision_label(bits, method) == label
    assert label_text(label) == text
    assert weight_bits(label) == cost
    assert precision_label(*map(str, split_label(label))) == label


@pytest.mark.parametrize(
    ("bits", "method", "switch", "label", "text", "cost"),
    [
        ("w4a4", "quest", ("bf16", 0.6), "4-bf16@0.6", "W4A4 after BF16@0.6", 4),
        ("w4a4", "lsq", ("w8a8", 0.25), "4-lsq-w8a8@0.25", "W4A4 LSQ after W8A8@0.25", 4),
        ("w2a16", "quest-noht", ("bf16", 0.5), "w2a16-quest-noht-bf16@0.5",
         "W2A16 without Hadamard after BF16@0.5", 2),
        ("bf16", "quest", ("w4a4", 0.5), "16-w4a4@0.5", "BF16 after W4A4@0.5", 16),
    ],
)  # fmt: skip
def test_labels_of_runs_that_switch(bits, method, switch, label, text, cost):
    """Never those of a run that was in one format throughout."""
    assert precision_label(bits, method, switch) == label
    assert label_text(label) == text
    assert weight_bits(label) == cost
    assert precision_label(*map(str, split_label(label))) == label
    assert label_of(label) == canonical_label(label) == label
    assert integer_kind(label)[0] not in ("quest", "none")


def test_a_label_of_one_s_own_has_no_bits():
    assert split_label("mine") is None
    assert weight_bits("mine") is None
    assert label_text("mine") == "mine"
    labels = ["mine", "4-lsq", "16", "1", "w4a16", "4", "1.58"]
    assert sorted_labels(labels) == ["1", "1.58", "4", "w4a16", "16", "4-lsq", "mine"]


@pytest.mark.parametrize(
    ("spelled", "label"),
    [
        *((text, "16") for text in ("16", 16, 16.0, "16.0", "1.6e1", "bf16", "BF16", "w16a16")),
        *((text, "4") for text in (4, 4.0, " 4.00", "w4a4", "W4A4", "w4.0a4.0", "4.0-quest")),
        *((text, "1.58") for text in (1.58, "1.580", "w1.58a1.58")),
        *((text, "fp4") for text in ("fp4", "FP4", "wfp4afp4")),
        *((text, "4-lsq") for text in ("4-lsq", "4.0-LSQ", "W4A4-lsq")),
        ("W4A16", "w4a16"),
        ("W4S24A4", "w4s24a4"),
        ("w2a2-quest-noht", "2-quest-noht"),
        ("Mine", "Mine"),
        ("v2.50", "v2.50"),
        ("4-MyMethod", "4-MyMethod"),
        ("4-", "4-"),
        (2.50, "2.5"),
        ("1e999", "1e999"),
    ],
)
def test_labels_in_other_spellings(spelled, label):
    """Numbers as pandas writes them and formats as people do; one's own labels stay."""
    assert label_of(spelled) == label
    assert label_of(label) == label
