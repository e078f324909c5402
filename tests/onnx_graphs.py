"""Small ONNX files made by hand, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(0).normal(size=(16, 3)) * 2
SHAPE = (1, 4, 4)
TYPES = {
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
}


def logits(images: np.ndarray) -> np.ndarray:
    """(n, 3) float64: what `Graph` answers."""
    return images.reshape(len(images), -1).astype(np.float64) @ WEIGHT


@dataclass(frozen=True)
class Graph:
    """Flatten, then a matrix product, then `tail`, a list of (operator, output name, attributes)."""

    dtype: str = "float32"
    batch: int | str | None = "batch"
    shape: Sequence[Any] = SHAPE
    answer: Sequence[Any] = ("batch", 3)
    tail: Sequence[tuple[str, str, dict[str, Any]]] = ()
    names: Sequence[str] = ("scores",)
    operator: str = "MatMul"
    domain: str = ""
    more_inputs: Sequence[str] = ()
    beside: str = ""
    opset: int = 18
    ir: int = 9

    def proto(self) -> Any:
        kind = TYPES[self.dtype]
        weight = numpy_helper.from_array(WEIGHT.astype(self.dtype), "weight")
        if self.beside:
            size = len(weight.raw_data)
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self.beside), ("offset", "0"), ("length", str(size))):
                entry = weight.external_data.add()
                entry.key, entry.value = key, value
        nodes = [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node(self.operator, ["flat", "weight"], ["scores"], domain=self.domain),
        ]
        nodes += [helper.make_node(op, ["scores"], [name], **more) for op, name, more in self.tail]
        inputs = [helper.make_tensor_value_info("images", kind, [self.batch, *self.shape])]
        inputs += [helper.make_tensor_value_info(name, kind, [1]) for name in self.more_inputs]
        types = {name: more.get("to", TensorProto.INT64 if op == "ArgMax" else kind) for op, name, more in self.tail}
        outputs = [helper.make_tensor_value_info(name, types.get(name, kind), self.answer) for name in self.names]
        opsets = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid(self.domain, 1)] if self.domain else [])
        graph = helper.make_graph(nodes, "graph", inputs, outputs, [weight])
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.proto().SerializeToString())
        return path


def weights(path: Path) -> None:
    """The file that `Graph(beside=...)` needs."""
    path.write_bytes(WEIGHT.astype(np.float32).tobytes())
