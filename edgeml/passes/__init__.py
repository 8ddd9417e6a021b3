"""Checked steps on a model, one verb per module.

``PASSES`` is the plug-in table: verb → dotted path, imported when asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from ..errors import MachineLacks, RecipeError
from ..model import Level
from .base import Pass

PASSES = {
    "train": "edgeml.passes.train:Train",
    "prune": "edgeml.passes.prune:Prune",
    "distill": "edgeml.passes.distill:Distill",
    "qat": "edgeml.passes.qat:Qat",
    "export": "edgeml.passes.export:Export",
}


def load_pass(verb: str, parameters: Mapping[str, Any] | None = None) -> Pass:
    """The pass of that verb, with its parameters.

    Raises:
        RecipeError: no such pass, or it has no such parameter.
        MachineLacks: what it imports is not installed.
    """
    if verb not in PASSES:
        raise RecipeError(
            f"no pass {verb!r} in this version; known: {', '.join(PASSES)}"
        )
    path, _, name = PASSES[verb].partition(":")
    try:
        kind: type[Pass] = getattr(import_module(path), name)
    except ImportError as error:
        raise MachineLacks(
            f"pass {verb!r} cannot be imported ({error}); "
            "install it with: pip install 'edgeml[torch]'"
        ) from error
    return kind(parameters or {})


def ordered(passes: Sequence[Pass], level: Level) -> list[str]:
    """What is wrong with this order of passes for a model of ``level``; [] if nothing.

    After the last one the model must be a graph.
    """
    mistakes = []
    for place, step in enumerate(passes, start=1):
        if step.takes != level:
            mistakes.append(
                f"pass {place} ({step.verb}) takes a model of level {step.takes}, "
                f"but it gets one of level {level}"
            )
        level = step.gives
    if level != "graph":
        mistakes.append(f"the passes end at level {level}; the last must be export")
    return mistakes
