"""Hostile and broken model files: name → what writes it and what must be said of it.

Every generator writes into a folder of its own and gives the path to hand to edgeml.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Malformed:
    """One file: who writes it, and words of the reason that must be given."""

    write: Callable[[Path], Path]
    reason: str
    """A regular expression, not minding case."""


def model(
    nodes=None, inputs=None, outputs=None, initializers=(), opset=17, extra=(), **more
):
    """A small graph: y = relu(x), unless told otherwise."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "g",
        inputs or [tensor("x", [1, 4])],
        outputs or [tensor("y", [1, 4])],
        list(initializers),
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *extra],
        ir_version=8,
        **more,
    )


def tensor(name, shape, kind=TensorProto.FLOAT):
    """A value info."""
    return helper.make_tensor_value_info(name, kind, shape)


def _saved(folder: Path, made, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path


def good(folder: Path) -> Path:
    """A sound model, for comparison."""
    return _saved(folder, model())


def _bytes(data: bytes, name: str = "m.onnx") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _truncated(folder: Path) -> Path:
    path = folder / "m.onnx"
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path.write_bytes(model(nodes, initializers=[weights]).SerializeToString()[:-40])
    return path


def huge_constant(folder: Path) -> Path:
    """A hundred bytes that ask for 12 GB, past checker and session creation."""
    shape = helper.make_tensor("v", TensorProto.INT64, [1], [3 * 2**30])
    nodes = [
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["r"], keepdims=1),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return _saved(folder, model(nodes))


def endless_loop(folder: Path) -> Path:
    """A Loop of 2^62 rounds."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["cond"], ["cond_out"]),
            helper.make_node("Sin", ["v"], ["v_out"]),
        ],
        "body",
        [
            tensor("i", [], TensorProto.INT64),
            tensor("cond", [], TensorProto.BOOL),
            tensor("v", [1, 4]),
        ],
        [tensor("cond_out", [], TensorProto.BOOL), tensor("v_out", [1, 4])],
    )
    rounds = helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    always = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    nodes = [helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body, name="loop")]
    return _saved(folder, model(nodes, initializers=[rounds, always]))


def external(location: str, prepare: Callable[[Path], None] | None = None, **entry):
    """A model whose weights are said to be at ``location``."""

    def write(folder: Path) -> Path:
        inner = folder / "inner"
        inner.mkdir()
        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
        weights.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entry}.items():
            weights.external_data.add(key=key, value=str(value))
        if prepare:
            prepare(inner)
        nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="add")]
        return _saved(inner, model(nodes, initializers=[weights]))

    return write


def _outside(inner: Path) -> None:
    (inner.parent / "secret.bin").write_bytes(bytes(16))


def _link(inner: Path) -> None:
    _outside(inner)
    (inner / "w.bin").symlink_to(inner.parent / "secret.bin")


def _pipe(inner: Path) -> None:
    os.mkfifo(inner / "w.bin")


def _short(inner: Path) -> None:
    (inner / "w.bin").write_bytes(bytes(7))


def nested_external(folder: Path) -> Path:
    """External data outside the folder, hidden in the branch of an If."""
    hidden = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4])
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../secret.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=hidden)],
        "branch", [], [tensor("b", [1, 4])],
    )  # fmt: skip
    always = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    _outside(folder / "inner")
    return _saved(folder, model([node], initializers=[always]))


class Evil:
    """Touches the file it was given when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def evil_pickle(name: str, protocol: int = 2) -> Callable[[Path], Path]:
    """A pickle that makes ``OWNED`` beside itself when it is loaded."""

    def write(folder: Path) -> Path:
        data = pickle.dumps(Evil(str(folder / "OWNED")), protocol)
        (folder / name).write_bytes(data)
        return folder / name

    return write


def archive(name: str, *members: str) -> Callable[[Path], Path]:
    """A zip with these members, as torch writes them."""

    def write(folder: Path) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for member in members:
                file.writestr(member, b"x")
        (folder / name).write_bytes(buffer.getvalue())
        return folder / name

    return write


def _graph(reason: str, **parts) -> Malformed:
    return Malformed(lambda folder: _saved(folder, model(**parts)), reason)


_node = helper.make_node
_CUSTOM = helper.make_opsetid("com.acme", 1)
_SEQUENCE = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)

MALFORMED: dict[str, Malformed] = {
    "empty": Malformed(_bytes(b""), "empty"),
    "noise": Malformed(_bytes(bytes(range(255, 0, -1)) * 9), "does not parse"),
    "truncated": Malformed(_truncated, "does not parse"),
    "text": Malformed(_bytes(b"hello, world\n" * 20), "does not parse"),
    "lfs": Malformed(_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    "html": Malformed(_bytes(b"<!DOCTYPE html><html></html>"), "web page"),
    "hdf5": Malformed(_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5.*tf2onnx"),
    "folder": Malformed(
        lambda folder: (folder / "m.onnx").mkdir() or folder / "m.onnx", "regular file"
    ),
    "absent": Malformed(lambda folder: folder / "m.onnx", "no file"),
    "pickle as onnx": Malformed(evil_pickle("m.onnx"), "pickle.*convert-weights"),
    "old pickle": Malformed(evil_pickle("m.pkl", 0), "pickle.*convert-weights"),
    "pth": Malformed(archive("m.pth", "m/data.pkl"), "pickle.*convert-weights"),
    "zip as onnx": Malformed(archive("m.onnx", "m/data.pkl"), "pickle"),
    "torchscript": Malformed(
        archive("m.pt", "m/data.pkl", "m/constants.pkl", "m/code/n.py"), "TorchScript"
    ),
    "pt2": Malformed(archive("m.pt2", "m/archive_format"), "--trust-model-code"),
    "any zip": Malformed(archive("m.onnx", "readme.txt"), "zip archive"),
    "tflite as onnx": Malformed(_bytes(b"\x1c\0\0\0TFL3" + bytes(60)), "TensorFlow L"),
    "huge constant": Malformed(huge_constant, "more memory"),
    "no outputs": Malformed(
        lambda folder: _saved(folder, onnx.ModelProto(ir_version=8, graph=model().graph
            .__class__(name="g"))), "no output"),
    "custom operator": _graph(
        "com.acme.Wobble .node 'w0'. is a custom operator",
        nodes=[_node("Wobble", ["x"], ["y"], name="w0", domain="com.acme")],
        extra=[_CUSTOM],
    ),
    "unknown operator": _graph(
        "Wobble .node 'w0'. is not an ONNX operator",
        nodes=[_node("Wobble", ["x"], ["y"], name="w0")],
    ),
    "unknown contrib": _graph(
        "ONNX Runtime refuses it.*Wobble",
        nodes=[_node("Wobble", ["x"], ["y"], name="w0", domain="com.microsoft")],
        extra=[helper.make_opsetid("com.microsoft", 1)],
    ),
    "operator too new": _graph(
        "Gelu .node 'g'. does not exist in opset 17",
        nodes=[_node("Gelu", ["x"], ["y"], name="g")],
    ),
    "deprecated operator": _graph(
        "Upsample .node 'u'. is deprecated in opset 17",
        nodes=[_node("Upsample", ["x", "x"], ["y"], name="u")],
    ),
    "opset of the future": _graph("opset 99", opset=99),
    "opset of the past": _graph("opset 6", opset=6),
    "no operator sets": Malformed(
        lambda folder: _saved(folder, onnx.ModelProto(ir_version=8,
            graph=model().graph)), "opset"),
    "cycle": _graph(
        "checker",
        nodes=[_node("Add", ["x", "b"], ["a"]), _node("Relu", ["a"], ["b"]),
               _node("Relu", ["b"], ["y"])],
    ),
    "missing tensor": _graph("checker", nodes=[_node("Add", ["x", "w"], ["y"])]),
    "wrong shapes": _graph(
        "checker|shapes|dimension",
        nodes=[_node("MatMul", ["x", "w"], ["y"], name="m")],
        initializers=[numpy_helper.from_array(np.ones((3, 4), np.float32), "w")],
    ),
    "variable shape": _graph(
        r"pin it.*x = \[1, …\]", inputs=[tensor("x", ["N", "T"])],
        outputs=[tensor("y", ["N", "T"])],
    ),
    "string input": _graph(
        "elements of string", inputs=[tensor("x", [1], TensorProto.STRING)],
        outputs=[tensor("y", [1], TensorProto.STRING)],
        nodes=[_node("Identity", ["x"], ["y"])],
    ),
    "sequence output": _graph(
        "output 'y' is of type sequence", outputs=[_SEQUENCE],
        nodes=[_node("SequenceConstruct", ["x"], ["y"])],
    ),
    "huge dimension": _graph(
        "cannot be served|more memory|memory", inputs=[tensor("x", [1, 2**40])],
        outputs=[tensor("y", [1, 2**40])],
    ),
    "zero dimension": _graph("impossible shape", inputs=[tensor("x", [1, 0])]),
    "external parent": Malformed(external("../secret.bin", _outside), "leads out"),
    "external absolute": Malformed(external("/etc/hostname"), "leads out"),
    "external backslash": Malformed(external("..\\secret.bin"), "leads out"),
    "external link": Malformed(external("w.bin", _link), "leads out.*link"),
    "external pipe": Malformed(external("w.bin", _pipe), "regular file"),
    "external missing": Malformed(external("w.bin"), "missing"),
    "external short": Malformed(external("w.bin", _short, length=16), "of a file of 7"),
    "external offset": Malformed(
        external("w.bin", _short, offset=-8, length=16), "asks for bytes -8"
    ),
    "external number": Malformed(
        external("w.bin", _short, offset="1e9"), "no number"
    ),
    "external in a branch": Malformed(nested_external, "leads out"),
}  # fmt: skip
