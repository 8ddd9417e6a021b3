"""Every key of a recipe: what it may be, its default and what it means.

``docs/recipe.md`` and the comments of ``edgeml init`` are made from this table.
"""

import re
from collections.abc import Iterator
from typing import Any

from calibration import catalog
from calibration.dataset import DataSource
from device_agent.contract.preprocess import StepsError, parse_steps
from targets.profile import ProfileError, load_target

from ..quantizers import QUANTIZERS
from .keys import (
    REQUIRED,
    Check,
    Key,
    Place,
    Table,
    flag,
    many,
    mapping,
    number,
    show,
    text,
    word,
)
from .verbs import CODE, VERBS

NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
VERSION = r"[0-9A-Za-z][0-9A-Za-z.+-]{0,63}"
"""Name and version as the manifest has them (``device_agent.contract.manifest``)."""
SAMPLERS = ("random", "stratified", "k_center")
LABELLED = ("top1", "top5", "f1", "auc", "mae", "rmse")
ERRORS = ("mae", "rmse")
METRICS = (*LABELLED, "agreement")
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int4", "mixed")
SEARCHED = tuple(one for one in PRECISIONS if one != "mixed")
"""A search mixes precisions by the number of layers that it keeps in float."""
METHODS = ("minmax", "entropy", "percentile")
QUANTIZER_NAMES = tuple(QUANTIZERS)
RANDOM = "random:"
SAMPLES_MAX = 100_000
SEED_MAX = 2**31 - 1


def _code(example: str) -> Check:
    return text(f"`{example}`", CODE)


def _file(kind: str) -> Check:
    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, str) or not value.strip():
            place.wrong(f"expected {kind}, got {show(value)}")
        elif not (place.folder / value).exists():
            place.wrong(f"{value!r} does not exist beside the recipe; expected {kind}")
        return value

    return Check(kind, read)


def _file_or_code(kind: str) -> Check:
    path = _file(kind)

    def read(value: Any, place: Place) -> Any:
        if isinstance(value, str) and re.fullmatch(CODE, value):
            return value
        return path.read(value, place)

    return Check(kind, read)


def _read_set(value: Any, place: Place) -> Any:
    found = isinstance(value, str) and re.fullmatch(r"([\w.-]+)/([\w.-]+)", value)
    if not found:
        place.wrong(f"expected NAME/SPLIT, got {show(value)}")
    elif found[1] not in catalog.names():
        known = ", ".join(catalog.names()) or "none"
        place.wrong(f"no data set {found[1]!r}; known: {known}")
    elif found[2] not in (splits := catalog.describe(found[1])["splits"]):
        place.wrong(
            f"data set {found[1]!r} has no split {found[2]!r}; "
            f"it has {', '.join(splits)}"
        )
    return value


def _read_location(value: Any, place: Place) -> Any:
    if isinstance(value, str) and value.startswith("set:"):
        _read_set(value.removeprefix("set:"), place)
        return value
    if isinstance(value, str) and value.startswith(RANDOM):
        count = value.removeprefix(RANDOM)
        if not re.fullmatch(r"[1-9]\d*", count) or int(count) > SAMPLES_MAX:
            place.wrong(
                f"expected random:COUNT with a count from 1 to {SAMPLES_MAX}, "
                f"got {show(value)}"
            )
        return value
    return _file_or_code(_PLACES).read(value, place)


_PLACES = "a path, `module:function`, `set:NAME/SPLIT` or `random:COUNT`"
_COLUMNS = many(text("column"), least=1, kind="list of columns")


def _read_columns(value: Any, place: Place) -> Any:
    if isinstance(value, list):
        return list(_COLUMNS.read(value, place))
    return text("a key, a column or a list of columns").read(value, place)


def _read_inputs(value: Any, place: Place) -> Any:
    if isinstance(value, dict):
        return {
            name: _read_columns(item, place.at(name)) for name, item in value.items()
        }
    return _read_columns(value, place)


_INPUTS = Check(
    "key or column, list of columns, or table of model input → either", _read_inputs
)

SOURCE = Table(
    (
        Key("path", _file("file or folder"), "Where the samples lie."),
        Key("function", _code("module:function"), "Your own code that gives them."),
        Key(
            "set", Check("`NAME/SPLIT`", _read_set), "A data set that edgeml describes."
        ),
        Key("inputs", _INPUTS, "As `data.inputs`, for this split alone."),
        Key("label", text("key or column"), "As `data.label`, for this split alone."),
        Key("slices", many(text("column")), "As `metric.slices`, for this split."),
        Key("limit", number(1, whole=True), "Take the first samples only."),
    )
)


def _read_source(value: Any, place: Place) -> Any:
    if not isinstance(value, dict):
        return DataSource(_read_location(value, place))
    found = SOURCE.read(value, place)
    given = [name for name in ("path", "function", "set") if found[name] is not None]
    if len(given) != 1:
        place.wrong(
            "expected exactly one of path, function and set, got "
            + (", ".join(given) or "none")
        )
        return DataSource("")
    prefix = "set:" if given == ["set"] else ""
    return DataSource(
        location=f"{prefix}{found[given[0]]}",
        inputs=found["inputs"],
        label=found["label"],
        slices=found["slices"] or (),
        limit=found["limit"],
    )


_SOURCE = Check(f"{_PLACES}, or a table", _read_source)


def _steps(kind: Any) -> Check:
    """A list of steps, read by the code that will run them."""

    def read(value: Any, place: Place) -> Any:
        try:
            return tuple(step.written() for step in parse_steps(value, kind))
        except StepsError as error:
            for index, mistake in error.mistakes:
                place.at(index).wrong(mistake)
            return ()

    return Check("list of steps", read)


def _read_labels(value: Any, place: Place) -> Any:
    if isinstance(value, list):
        return many(text("class name"), least=1).read(value, place)
    before = len(place.mistakes)
    _file("list of class names, or a text file with one a line").read(value, place)
    if len(place.mistakes) > before:
        return ()
    try:
        lines = (place.folder / value).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        place.wrong(f"{value!r} cannot be read as UTF-8 text: {error}")
        return ()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        place.wrong(f"{value!r} holds no class names; expected one a line")
    return names


_LABELS = Check("list of class names, or a file with one a line", _read_labels)


_VERB = word(tuple(VERBS))


def _read_pass(value: Any, place: Place) -> Any:
    """One ``[[pass]]``: a verb, and the parameters of that verb."""
    if not isinstance(value, dict) or "verb" not in value:
        return PASS.read(value, place)
    verb = _VERB.read(value["verb"], place.at("verb"))
    rest = {name: one for name, one in value.items() if name != "verb"}
    if not isinstance(verb, str) or verb not in VERBS:
        return {"verb": verb}
    VERBS[verb].read(rest, place)
    return {"verb": verb, **rest}


def _read_target(value: Any, place: Place) -> Any:
    if not isinstance(value, str):
        place.wrong(f"expected the name of a target, got {show(value)}")
        return value
    try:
        load_target(value, place.folder)
    except ProfileError as error:
        for line in str(error).splitlines():
            place.wrong(line)
    return value


_ANY = Check("any value", lambda value, place: value)


def _read_shape(value: Any, place: Place) -> Any:
    if not isinstance(value, list):
        place.wrong(f"expected a list of sizes, such as [1, 3, 96, 96], got {value!r}")
        return []
    for index, size in enumerate(value):
        if type(size) is not int or not (size == -1 or 1 <= size < 2**31):
            place.at(index).wrong(
                f"expected a size from 1, or -1 (variable: the batch), got {show(size)}"
            )
    return value


_SHARE = number(0, 1)
_LIMIT = number(0)
_BYTES = number(1, whole=True)

_MODEL = "`.onnx`, `.pt2` or `.tflite` file, or `module:factory`"
_SHAPES = mapping(Check("list of sizes", _read_shape), "table of input → shape")

MODEL = Table((
    Key("source", _file_or_code(_MODEL),
        "The trained model; a factory is your function that returns a torch module.",
        REQUIRED),
    Key("weights", _file("`.safetensors` file"),
        "Weights for the module that the factory makes."),
    Key("name", text("lower-case name", NAME), "Name of the releases.", REQUIRED),
    Key("version", text("version", VERSION), "Version of this release.", REQUIRED),
    Key("release_counter", number(0, 2**63 - 1, whole=True),
        "Grows with every release; a device takes no smaller one.", 0),
    Key("inputs", _SHAPES,
        "Shapes of inputs, batch included (-1: variable): pins what the model leaves "
        "variable; a factory's inputs must be here."),
))  # fmt: skip

DATA = Table((
    Key("calibration", _SOURCE,
        "Samples that quantizers look at; never used to judge.", REQUIRED),
    Key("validation", _SOURCE,
        "Samples that candidates are judged by; disjoint from calibration.", REQUIRED),
    Key("train", _SOURCE, "Samples for passes that train."),
    Key("inputs", _INPUTS,
        "Which key (npz) or columns (CSV, Parquet) feed which model input."),
    Key("label", text("key or column"), "Which key or column holds the label."),
    Key("sampler", word(SAMPLERS), "How calibration samples are drawn.", "stratified"),
    Key("samples", number(1, SAMPLES_MAX, whole=True),
        "How many are drawn.", 200),
))  # fmt: skip

PREPROCESS = Table((
    Key("steps", _steps("preprocess"),
        "What is done to a raw sample, in order, here and on the device.", ()),
    Key("input", text("name of an input"),
        "The model input that the steps make; default: the first."),
))  # fmt: skip

POSTPROCESS = Table((
    Key("steps", _steps("postprocess"),
        "What makes an answer for people of the outputs, in order.", ()),
    Key("labels", _LABELS, "Names of the classes, in the order of the outputs.", ()),
))  # fmt: skip

METRIC = Table((
    Key("name", word(METRICS, otherwise=_code("module:function")),
        "What candidates are judged by; `agreement` (same answer as the float model) "
        "needs no labels.", REQUIRED),
    Key("output", text("name of an output"),
        "The output that is judged; default: the first."),
    Key("better", word(("higher", "lower")),
        "Which way is better; default: `lower` for `mae` and `rmse`, else `higher`."),
    Key("slices", many(text("column")),
        "Columns that split the samples into groups, each judged by itself.", ()),
))  # fmt: skip

BUDGET = Table((
    Key("max_accuracy_drop", _LIMIT,
        "Most that the metric may get worse than the float model's, in the metric's "
        "own unit (0.01 = one point of top-1). Not set: 0.01, for error metrics 1 % of "
        "the float model's value."),
    Key("max_slice_drop", _LIMIT, "The same for the worst slice."),
    Key("max_flip_rate", _SHARE,
        "Largest share of samples with another answer than the float model's."),
    Key("max_latency_ms", _LIMIT,
        "Median milliseconds of one inference at batch 1, measured on this machine."),
    Key("max_size_bytes", _BYTES, "Bytes of the artifact."),
    Key("max_memory_bytes", _BYTES, "Peak resident bytes of a fresh process."),
    Key("max_fallback_share", _SHARE,
        "Largest share of nodes that the target's device does not run itself."),
))  # fmt: skip

QUANTIZE = Table((
    Key("precisions", many(word(PRECISIONS)),
        "Which to try (fp32 always is); empty: all that the target has.", ()),
    Key("methods", many(word(METHODS)),
        "How ranges are found; empty: all that the tool has.", ()),
    Key("quantizers", many(word(QUANTIZER_NAMES)),
        "Whose quantizers to try; empty: all that are installed.", ()),
    Key("keep", many(text("name of a node")),
        "Nodes that stay in float in every candidate.", ()),
    Key("mixed", flag(),
        "Try sensitive layers in float before giving up.", True),
    Key("percentile", number(50, 100), "For the method `percentile`.", 99.99),
    Key("per_channel", flag(), "One scale per output channel of the weights.", True),
))  # fmt: skip

SEARCH = Table((
    Key("trials", number(1, 10_000, whole=True), "Points that are tried, at most.", 30),
    Key("minutes", number(0, 100_000),
        "Minutes of trials over all runs of the search, at most; 0: no limit.", 0.0),
    Key("prune", many(number(0, 0.99)),
        "Shares of channels that go; 0: all stay. Empty: 0, 0.3, 0.5 and 0.7 where "
        "there is `[data] train`, else what the recipe's passes do.", ()),
    Key("distill", many(flag()),
        "Whether the pruned network learns from the whole one. Empty: both where there "
        "is `[data] train`, else what the recipe's passes do.", ()),
    Key("precisions", many(word(SEARCHED)),
        "Empty: those of `[quantize]`, else all that the target has.", ()),
    Key("methods", many(word(METHODS)),
        "How int8 ranges are found. Empty: those of `[quantize]`, else all.", ()),
    Key("samples", many(number(1, SAMPLES_MAX, whole=True)),
        "How many calibration samples int8 ranges are found on. Empty: 50 and "
        "`data.samples`.", ()),
    Key("keep", many(number(0, 1000, whole=True)),
        "How many of the most sensitive layers stay in float in int8 networks. Empty: "
        "0, 2 and 4.", ()),
))  # fmt: skip

PASS = Table((
    Key("verb", _VERB,
        "What is done to the model; a torch module is exported at the end by itself. "
        "The other keys are the verb's own.", REQUIRED),
), spare=_ANY)  # fmt: skip

BUILD = Table((
    Key("targets", many(Check("target", _read_target), least=1),
        "Names (`edgeml targets`), or paths to profiles of your own (`*.toml`).",
        REQUIRED),
    Key("seed", number(0, SEED_MAX, whole=True), "All randomness comes from it.", 0),
))  # fmt: skip

_PASSES = many(Check("table", _read_pass), kind="list of tables", distinct=False)

RECIPE = Table((
    Key("model", MODEL, "What to compile.", REQUIRED),
    Key("data", DATA, "Real samples: to calibrate and to judge.", REQUIRED),
    Key("preprocess", PREPROCESS, "From a raw sample to the model's input.", {}),
    Key("postprocess", POSTPROCESS, "From the model's outputs to an answer.", {}),
    Key("metric", METRIC, "What candidates are judged by.", REQUIRED),
    Key("budget", BUDGET, "The limits a build must hold; none is set by default.", {}),
    Key("quantize", QUANTIZE, "What the quantizers may try.", {}),
    Key("pass", _PASSES, "Steps on the model, in order.", ()),
    Key("build", BUILD, "For which targets.", REQUIRED),
    Key("search", Check("table", SEARCH.read),
        "What `edgeml search` looks among, and for how long; with this table "
        "`edgeml build` searches too. See [search.md](search.md)."),
))  # fmt: skip


def documented() -> Iterator[str]:
    """``docs/recipe.md``'s tables, line by line."""
    for section in RECIPE.keys:
        table = {"pass": PASS, "search": SEARCH}.get(section.name, section.check)
        if not isinstance(table, Table):
            continue
        brackets = "[[pass]]" if section.name == "pass" else f"[{section.name}]"
        need = " Required." if section.default is REQUIRED else ""
        yield from _rows(f"`{brackets}`", f"{section.meaning}{need}", table)
    for verb, table in VERBS.items():
        yield from _rows(f'`verb = "{verb}"`', "The keys of this pass.", table)
    yield from _rows(
        "A split as a table",
        "`calibration`, `validation` and `train` may be a table with exactly one of "
        "`path`, `function` and `set`.",
        SOURCE,
    )


def _rows(title: str, meaning: str, table: Table) -> Iterator[str]:
    yield from (f"## {title}", "", meaning, "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for key in table.keys:
        yield (f"| `{key.name}` | {key.check.kind} | {_default(key)} | {key.meaning} |")
    yield ""


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.default is None or key.default == ():
        return "none"
    return f"`{show(key.default)}`"
