"""An ONNX model that is being written: its nodes are held, its large tensors go straight into a
file beside it (external data), so that no more than one of them is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from questtrain.version import __version__

MODEL, DATA = "model.onnx", "model.onnx_data"
"""The model's file and that of its large tensors, as optimum names them."""

OPSET = 18
"""Of ai.onnx; every operator of it that is used here is in both runtimes."""

EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model's own file."""

ALIGNMENT = 4096
"""Of tensors in the data file, so that a runtime can map them into memory."""

ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}

Shape = Sequence[int | str]
"""Sizes; a name where only a run tells."""


class Graph:
    """Nodes, tensors, inputs and outputs. Values are known by their names, which `op` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[torch.dtype, tuple[int, ...], bytes], str] = {}
        self._scope = ""
        self._data: BinaryIO = (folder / DATA).open("wb")

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of nodes within begin with ``name``."""
        outer, self._scope = self._scope, f"{name}."
        try:
            yield
        finally:
            self._scope = outer

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output."""
        return self.ops(kind, inputs, 1, domain, **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node of several outputs."""
        name = f"{self._scope}{kind}_{len(self._nodes)}"
        results = [name] if outputs == 1 else [f"{name}.{place}" for place in range(outputs)]
        node = helper.make_node(kind, inputs, results, name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return results

    def number(self, value: float, dtype: torch.dtype = torch.float32) -> str:
        """A scalar constant."""
        return self.constant(torch.tensor(value, dtype=dtype))

    def sizes(self, *values: int) -> str:
        """A constant list of int64: a shape, axes."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def constant(self, value: Tensor) -> str:
        """A small constant; equal ones are one."""
        key = (value.dtype, tuple(value.shape), _bytes(value).tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(f"constant.{len(self._constants)}", value)
        return self._constants[key]

    def tensor(self, name: str, value: Tensor) -> str:
        """A tensor of the model, by its full name; a large one is written at once."""
        held = TensorProto(name=name, data_type=ELEMENT_TYPES[value.dtype], dims=value.shape)
        data = _bytes(value)
        if len(data) < EXTERNAL_BYTES:
            held.raw_data = data.tobytes()
        else:
            self._data.write(b"\0" * (-self._data.tell() % ALIGNMENT))
            place = {"location": DATA, "offset": self._data.tell(), "length": len(data)}
            held.data_location = TensorProto.EXTERNAL
            for key, what in place.items():
                held.external_data.add(key=key, value=str(what))
            self._data.write(data)
        self._tensors.append(held)
        return name

    def input(self, name: str, dtype: torch.dtype, shape: Shape) -> str:
        """What a run gives."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))
        return name

    def output(self, name: str, value: str, shape: Shape) -> None:
        """What a run gets, fp32: a value that was made before, under another name."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}.Identity"))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def shape(self, value: str, shape: Shape) -> None:
        """Say the shape of a value fp32 that no inference can tell: of a domain's own operator."""
        self._shapes.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))

    def save(self, name: str, metadata: Mapping[str, str]) -> None:
        """Write the model, with the shapes that follow, and check it."""
        self._data.close()
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._tensors, value_info=self._shapes
        )
        domains = {"": OPSET} | {node.domain: 1 for node in self._nodes if node.domain}
        imports = [helper.make_opsetid(domain, number) for domain, number in domains.items()]
        model = helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=helper.find_min_ir_version_for(imports, ignore_unknown=True),
            producer_name="questtrain",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(metadata))
        model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        (self._folder / MODEL).write_bytes(model.SerializeToString())
        onnx.checker.check_model(self._folder / MODEL)

    def close(self) -> None:
        """Close the file of data; once more does nothing."""
        self._data.close()


def _bytes(value: Tensor) -> memoryview:
    """The values as they lie in memory, without a copy of those that lie in order."""
    whole = value.contiguous().view(-1).view(torch.uint8)
    return memoryview(whole.numpy())  # type: ignore[arg-type]


def read_tensor(model: onnx.ModelProto, folder: Path, name: str) -> Tensor | None:
    """A tensor of a model that `Graph.save` wrote, loaded without its external data; None where it
    has none of that name."""
    for held in model.graph.initializer:
        if held.name == name:
            dtype = next(ours for ours, theirs in ELEMENT_TYPES.items() if theirs == held.data_type)
            data = bytearray(held.raw_data) or _external(held, folder)
            return torch.frombuffer(data, dtype=dtype).reshape(tuple(held.dims))
    return None


def _external(held: TensorProto, folder: Path) -> bytearray:
    place = {entry.key: entry.value for entry in held.external_data}
    with (folder / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        return bytearray(file.read(int(place["length"])))
