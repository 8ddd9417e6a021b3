"""Export: a torch module becomes an ONNX graph that gives the same numbers.

1. ``torch.onnx`` by ``torch.export`` (``dynamo=True``), with a variable batch where the
   model allows it; else batch 1, with the reason in the lineage.
2. The ONNX checker accepts it, and ONNX Runtime agrees with the eager module on seeded
   data and on the real samples within ``tolerance``; the lineage holds the measured
   ``export_error``.
3. The same module gives the same bytes: no stack traces, no paths, one thread.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from device_agent.contract.tensors import Array, Feeds, TensorSpec

from ..errors import ModelError, PassError, one_line
from ..graphs.protos import name_nodes, spec_of, strip_remarks
from ..intake.modules import named_outputs, torch_here
from ..model import Level, Model, Step
from .base import Context, Pass

BATCHES = (1, 3)
"""Batch sizes that a variable batch is tried with."""
REAL_SAMPLES = 8
"""At most so many of the given feeds are compared."""


class Export(Pass):
    """Module → graph."""

    verb = "export"
    takes: ClassVar[Level] = "module"
    gives: ClassVar[Level] = "graph"

    def run(self, model: Model, context: Context) -> Model:
        """Try a variable batch, then batch 1; keep what agrees with the module."""
        torch = torch_here()
        why_fixed = _why_fixed(model.inputs)
        if not self.parameters["dynamic_batch"]:
            why_fixed = "asked for"
        with _quiet(), _one_thread(torch), torch.no_grad():
            if not why_fixed:
                try:
                    return self._exported(torch, model, context, None)
                except PassError as error:
                    why_fixed = one_line(error, 160)
            return self._exported(torch, model, context, why_fixed)

    def _exported(
        self, torch: Any, model: Model, context: Context, why_fixed: str | None
    ) -> Model:
        proto = _proto(torch, model, self.parameters["opset"], why_fixed is None)
        batches = (1,) if why_fixed is not None else BATCHES
        feeds = [
            *_seeded(torch, model, batches, context.seed),
            *context.feeds[:REAL_SAMPLES],
        ]
        error = disagreement(torch, model.payload, model.inputs, proto, feeds)
        if not error <= self.parameters["tolerance"]:
            raise PassError(
                f"the ONNX graph differs from the module by {error:.1e} of the largest "
                f"output; allowed {self.parameters['tolerance']:.1e}"
            )
        step = Step(
            self.verb,
            {
                "exporter": "torch.onnx dynamo",
                "opset": self.parameters["opset"],
                "batch": "variable" if why_fixed is None else f"1: {why_fixed}",
                "compared": len(feeds),
                # two digits: the last ones depend on the CPU that measured them
                "export_error": float(f"{error:.1e}"),
            },
        )
        return model.after(
            step,
            level="graph",
            payload=proto,
            inputs=tuple(spec_of(value) for value in proto.graph.input),
            outputs=tuple(spec_of(value, "output") for value in proto.graph.output),
        )

    def ensures(self, before: Model, after: Model, context: Context) -> None:
        """The checker accepts the graph, and the inputs kept names and types."""
        import onnx

        onnx.checker.check_model(after.payload, full_check=True)
        wanted = [(spec.name, spec.datatype) for spec in before.inputs]
        found = [(spec.name, spec.datatype) for spec in after.inputs]
        if wanted != found:
            raise PassError(f"the graph takes {found}; expected {wanted}")


def _why_fixed(inputs: Sequence[TensorSpec]) -> str | None:
    odd = [spec.name for spec in inputs if spec.shape[0] not in (1, -1)]
    return f"the first dimension of {', '.join(odd)} is no batch" if odd else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, warns and logs; its errors come as exceptions anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _proto(torch: Any, model: Model, opset: int, variable: bool) -> Any:
    # a batch of 2 to trace with: 1 would be taken for a constant
    size = 2 if variable else 1
    example = tuple(
        torch.zeros([size if place == 0 and dim in (1, -1) else dim
                     for place, dim in enumerate(spec.shape)])
        for spec in model.inputs
    )  # fmt: skip
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.onnx.export(
            model.payload,
            example,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=[spec.name for spec in model.inputs],
            output_names=[spec.name for spec in model.outputs],
            dynamic_shapes=tuple({0: batch} for _ in example) if variable else None,
        )
        proto = program.model_proto
    except Exception as error:
        raise PassError(f"torch.onnx cannot export it: {_heart(error)}") from error
    strip_remarks(proto)
    name_nodes(proto)
    return proto


def _heart(error: BaseException) -> str:
    """The innermost cause, without the advice that the exporter wraps it in."""
    while error.__cause__ is not None:
        error = error.__cause__
    if "data-dependent" in str(error):
        return "its Python code branches on values; use torch.where or torch.cond"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {' '.join(lines[:2])}", 200)


def _seeded(torch: Any, model: Model, batches: Sequence[int], seed: int) -> list[Feeds]:
    """Random feeds that the module takes: one that reads numbers as places in a table
    (tokens) takes no others than whole ones from 0."""
    import numpy as np

    random = np.random.default_rng(seed)
    ways: Sequence[Callable[[list[int]], Array]] = (
        random.standard_normal,
        lambda shape: random.integers(0, 2, shape),
        np.zeros,
    )
    feeds: list[Feeds] = []
    for draw in ways:
        feeds = [
            {
                spec.name: draw(_shape(spec, size)).astype(spec.dtype)
                for spec in model.inputs
            }
            for size in batches
        ]
        if _takes(torch, model, feeds[0]):
            break
    return feeds


def _shape(spec: TensorSpec, batch: int) -> list[int]:
    return [
        batch if place == 0 and size in (1, -1) else size
        for place, size in enumerate(spec.shape)
    ]


def _takes(torch: Any, model: Model, feed: Feeds) -> bool:
    """Whether the module does not refuse these numbers."""
    arguments = [torch.from_numpy(feed[spec.name].copy()) for spec in model.inputs]
    try:
        model.payload(*arguments)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def disagreement(
    torch: Any,
    module: Any,
    inputs: Sequence[TensorSpec],
    proto: Any,
    feeds: Sequence[Feeds],
) -> float:
    """Largest difference of any output, in parts of that output's largest magnitude.

    Infinite when one of the two is not finite where the other is, or when the shapes
    differ.

    Raises:
        PassError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for feed in feeds:
            given = session.run(None, dict(feed))
            arguments = [torch.from_numpy(feed[spec.name].copy()) for spec in inputs]
            wanted = named_outputs(module(*arguments)).values()
            for eager, array in zip(wanted, given, strict=True):
                worst = max(worst, _difference(eager.numpy(), array))
    except ModelError as error:
        raise PassError(str(error)) from error
    except Exception as error:
        raise PassError(f"the ONNX graph does not run: {_heart(error)}") from error
    return worst


def _difference(wanted: Array, found: Array) -> float:
    import numpy as np

    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if not wanted.size:
        return 0.0
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(right[finite]).all():
        return float("inf")
    size = np.abs(left[finite]).max(initial=0.0)
    apart = np.abs(left[finite] - right[finite]).max(initial=0.0)
    return float(apart / size) if size else float(apart)
