"""Models that are the user's own Python: ``module:factory``, and trusted ``.pt2``.

1. The factory takes nothing and gives a ``torch.nn.Module``; it is set to ``eval()``.
2. Weights must fit the module exactly: same names, same shapes, no NaN.
3. Every input is named and shaped by the recipe (``[model] inputs``), float32; it is
   run once on zeros to see its outputs.
4. Whatever the user's code raises becomes a :class:`ModelError` of one line.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

from device_agent.contract.tensors import TensorSpec, datatype_of

from ..errors import MachineLacks, ModelError, one_line
from ..model import Model, Step

TORCH_PIN = "torch==2.13.0"
_SHOWN = 6
"""How many names of a list a message shows."""


def torch_here() -> Any:
    """The torch package.

    Raises:
        MachineLacks: it is not installed; names the pin and the extra.
    """
    try:
        import torch
    except ImportError as error:
        raise MachineLacks(
            f"torch is not installed; install it with: pip install {TORCH_PIN} "
            "--index-url https://download.pytorch.org/whl/cpu && "
            "pip install 'edgeml[torch]'"
        ) from error
    return torch


def load_factory(
    source: str,
    weights: Path | None,
    folder: Path,
    pinned: Mapping[str, Sequence[int]],
    seed: int = 0,
) -> Model:
    """Import ``module:factory``, call it, load ``weights`` into what it gives.

    Weights that the factory draws come from ``seed``: the same ones every time.

    Raises:
        ModelError: the code raised, gave no module, or the weights do not fit.
        MachineLacks: torch is not installed.
    """
    torch = torch_here()
    try:
        with (
            importable(folder, source.partition(":")[0]),
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(seed)
            module = _call(source)
    except MachineLacks:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            one_line(f"{source} raised {type(error).__name__}: {error}")
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{source} gave a {type(module).__name__}; expected a torch.nn.Module"
        )
    parameters: dict[str, Any] = {"source": source}
    if weights is not None:
        parameters["weights"] = load_weights(module, weights)
    module.eval()
    inputs = _pinned_inputs(source, module, pinned)
    return Model(
        level="module",
        payload=module,
        inputs=inputs,
        outputs=_outputs(source, module, inputs),
        lineage=(Step("load", parameters),),
    )


@contextmanager
def importable(folder: Path, module: str) -> Iterator[None]:
    """Have ``folder`` first on ``sys.path``, and ``module`` taken from there.

    A module of the same name that was loaded from another recipe's folder is
    forgotten first, or its code would answer for this one's.
    """
    top = module.partition(".")[0]
    here = str(folder.resolve())
    known = getattr(sys.modules.get(top), "__file__", None)
    mine = any((folder / name).exists() for name in (f"{top}.py", top))
    if mine and known and not Path(known).resolve().is_relative_to(here):
        for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
            del sys.modules[name]
    sys.path.insert(0, here)
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def _call(source: str) -> Any:
    module, _, factory = source.partition(":")
    found: Any = import_module(module)
    for name in factory.split("."):
        found = getattr(found, name)
    return found()


def load_weights(module: Any, path: Path) -> dict[str, str]:
    """Load safetensors into ``module``; gives the file's name and SHA-256.

    Raises:
        ModelError: unreadable, or the names, shapes or values do not fit; lists them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = path.read_bytes()
    try:
        given = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"weights {path.name} cannot be read as safetensors: {one_line(error)}"
        ) from error
    wanted = module.state_dict()
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
            for name in sorted(wanted.keys() & given.keys())
            if given[name].shape != wanted[name].shape
        ],
        "with NaN": sorted(n for n, t in given.items() if bool((t != t).any())),
    }
    found = [f"{what}: {_few(names)}" for what, names in faults.items() if names]
    if found:
        raise ModelError(
            f"weights {path.name} do not fit the module; {'; '.join(found)}"
        )
    module.load_state_dict(given, strict=True)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _pinned_inputs(
    source: str, module: Any, pinned: Mapping[str, Sequence[int]]
) -> tuple[TensorSpec, ...]:
    """The pinned inputs in the order that ``forward`` takes them."""
    if not pinned:
        raise ModelError(
            f"{source}: a torch model needs its input shapes; add to the recipe: "
            "[model] inputs = {x = [1, …]}, the batch dimension first"
        )
    for name, shape in pinned.items():
        if not shape or any(size < 1 for size in shape[1:]) or shape[0] < -1:
            raise ModelError(
                f"{source}: [model] inputs gives {name!r} the shape {list(shape)}; "
                "expected sizes of at least 1 (-1 only for the batch)"
            )
    names = list(pinned)
    arguments = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if set(names) <= set(arguments):
        names.sort(key=arguments.index)
    return tuple(
        TensorSpec(name=name, datatype="FP32", shape=tuple(pinned[name]))
        for name in names
    )


def _outputs(
    source: str, module: Any, inputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    torch = torch_here()
    zeros = [torch.zeros([abs(size) for size in spec.shape]) for spec in inputs]
    try:
        with torch.no_grad():
            given = named_outputs(module(*zeros))
    except ModelError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
        raise ModelError(
            one_line(
                f"{source} does not run on zeros (float32) of {shapes}: "
                f"{type(error).__name__}: {error}"
            )
        ) from error
    variable = inputs[0].shape[0] == -1
    return tuple(
        TensorSpec(
            name=name,
            datatype=datatype_of(value.numpy().dtype),
            shape=(-1, *value.shape[1:]) if variable else tuple(value.shape),
        )
        for name, value in given.items()
    )


def named_outputs(value: Any) -> dict[str, Any]:
    """What a module returned, by name: a tensor, a flat sequence or a mapping of them.

    Raises:
        ModelError: it returned something else.
    """
    torch = torch_here()
    if isinstance(value, torch.Tensor):
        return {"output": value}
    if isinstance(value, Mapping):
        found = {str(name): part for name, part in value.items()}
    elif isinstance(value, tuple | list):
        found = {f"output_{place}": part for place, part in enumerate(value)}
    else:
        found = {}
    if not found or not all(isinstance(p, torch.Tensor) for p in found.values()):
        raise ModelError(
            f"the module returned a {type(value).__name__}; expected a tensor, or a "
            "flat tuple, list or dict of tensors"
        )
    return found


def load_exported(path: Path, pinned: Mapping[str, Sequence[int]]) -> Model:
    """Load a ``.pt2`` that the user trusts; loading it can run code.

    Raises:
        ModelError: it cannot be loaded or run.
        MachineLacks: torch is not installed.
    """
    torch = torch_here()
    try:
        program = torch.export.load(path)
        module = program.module()
        names = list(program.graph_signature.user_inputs)
        examples = list(program.example_inputs[0]) if program.example_inputs else []
    except Exception as error:
        raise ModelError(
            one_line(f"{path.name} cannot be loaded: {type(error).__name__}: {error}")
        ) from error
    shapes = dict(pinned) or {
        name: list(example.shape)
        for name, example in zip(names, examples, strict=False)
    }
    inputs = _pinned_inputs(path.name, module, shapes)
    facts = {
        "source": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return Model(
        level="module",
        payload=module,
        inputs=inputs,
        outputs=_outputs(path.name, module, inputs),
        lineage=(Step("load", facts),),
    )
