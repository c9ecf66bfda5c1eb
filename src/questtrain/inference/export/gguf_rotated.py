"""GGUF with codes of rotated weights: what PrismML's fork of llama.cpp and its ports run.

Keys ``prism.hadamard.*`` (version 1) tell the program to rotate what these weights multiply, in
blocks, by the normalized Sylvester-Walsh-Hadamard matrix: ours. llama.cpp itself and mistral.rs
ignore keys that they do not know, and would compute garbage without a word. So the file says that
it is of another architecture, which they refuse; the keys of the model stay those of its real one.
None of the programs that read such keys runs here, and the certificate says so: codes alone are
compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from questtrain.config.export_formats import EXPORT_FORMATS
from questtrain.inference.export.card import write_card
from questtrain.inference.export.format import ExportFormat, Options
from questtrain.inference.export.gguf import activations_refusal, file_refusal
from questtrain.inference.export.gguf_file import (
    architecture,
    around_the_blocks,
    gguf_name,
    read_tensor,
    write_file,
)
from questtrain.inference.export.gguf_packed import (
    bits_refusal,
    block_refusal,
    file_type,
    linears,
    scale_limits,
)
from questtrain.inference.export.integers import coded_layers
from questtrain.inference.export.source import Source
from questtrain.quant.packing import rotation_block

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "questtrain-hadamard"
LOADING = """`model.gguf` holds codes of rotated weights. A program must rotate what they multiply,
as its `prism.hadamard.*` keys say; llama.cpp itself does not, and refuses the file."""


class GgufRotatedFormat(ExportFormat):
    """Codes in the rotated space, and keys that say how to rotate activations."""

    name = "gguf-rotated"
    runtimes = EXPORT_FORMATS["gguf-rotated"].runtimes

    def refusal(self, source: Source, options: Options) -> str | None:
        return (
            activations_refusal(source)
            or bits_refusal(source)
            or one_block_refusal(source)
            or block_refusal(source)
            or file_refusal(source)
            or _experimental(options)
        )

    def write(self, source: Source, folder: Path, options: Options) -> None:
        entries = [*around_the_blocks(source, options.dtype), *linears(source, options.dtype)]
        blocks = rotation_blocks(source)

        def add_contract(writer: GGUFWriter) -> None:
            writer.add_uint32("prism.hadamard.version", 1)
            writer.add_uint32("prism.hadamard.block_size", next(iter(blocks.values())))
            writer.add_string("prism.hadamard.transform", "normalized-sylvester-walsh-hadamard")
            writer.add_string("prism.hadamard.axis", "input-last-dimension")
            writer.add_string("prism.hadamard.sign_mode", "identity")
            names = [f"{gguf_name(name)}.weight" for name in blocks]
            writer.add_array("prism.hadamard.weight_names", names)

        write_file(source, folder, entries, file_type(source), ARCHITECTURE, add_contract)
        write_card(source, folder, LOADING, "gguf")

    def stored(self, folder: Path, name: str) -> tuple[Tensor, bool]:
        return read_tensor(folder, name), False

    def limits(self, source: Source, options: Options, runtime: str) -> list[str]:
        kind = architecture(source.config.model)
        return [
            "No program was run: none here rotates activations by prism.hadamard.* keys. What the"
            " file holds was compared with the run's codes; what a fork computes of it was not.",
            f"general.architecture is {ARCHITECTURE}, so that programs that ignore these keys"
            f" refuse the file; for one that honours them change it to {kind}.",
            *scale_limits(source),
        ]

    def logits(
        self, folder: Path, runtime: str, prompts: Sequence[Tensor], device: str
    ) -> Iterator[Tensor]:
        raise NotImplementedError("no program here runs gguf-rotated")


def rotation_blocks(source: Source) -> dict[str, int]:
    """The layers that have codes, and in what blocks their weights are rotated: 1 for not."""
    layers = coded_layers(source).items()
    return {name: rotation_block(quantizer.rotation) or 1 for name, quantizer in layers}


def one_block_refusal(source: Source) -> str | None:
    """The file has one size of blocks."""
    blocks = rotation_blocks(source)
    (first, size), *rest = blocks.items()
    if size == 1:
        return f"{first} is not rotated: format=gguf-packed holds its codes."
    for name, other in rest:
        if other != size:
            return (
                f"{first} is rotated in blocks of {size} and {name} in blocks of {other}, and the"
                " keys have one size for the file: format=onnx and format=packed hold it."
            )
    return None


def _experimental(options: Options) -> str | None:
    if options.experimental:
        return None
    return (
        "no program here has been seen to run such a file: experimental=true writes it all the"
        " same; format=gguf holds the weights rotated back (dense), exact in llama.cpp."
    )
