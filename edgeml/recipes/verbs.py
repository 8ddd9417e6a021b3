"""The parameters of every pass: one table per verb, for recipes, passes and docs.

A pass takes its defaults from here, so that a recipe is checked, with its lines,
before anything is trained.
"""

from typing import Any

from .keys import Check, Key, Place, Table, flag, many, mapping, number, text, word

CODE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


def _optional(kind: str, pattern: str | None = None) -> Check:
    inner = text(kind, pattern)

    def read(value: Any, place: Place) -> Any:
        return value if value == "" else inner.read(value, place)

    return Check(f"{kind}, or empty", read)


_HOOK = _optional("`module:function`", CODE)
_FACTORY = _optional("`module:factory`", CODE)
_FILE = _optional("`.safetensors` file", r".*\.safetensors")
_NAMES = many(text("name of a layer"))
_RATIO = number(0, 0.99)


def _training(epochs: int, learning_rate: float) -> tuple[Key, ...]:
    """What every pass that trains understands."""
    return (
        Key("epochs", number(0, 10_000, whole=True),
            "At most so often over all training samples; 0: no training.", epochs),
        Key("batch", number(1, 65536, whole=True), "Samples of one step.", 128),
        Key("learning_rate", number(0, 10), "Highest rate of the schedule.",
            learning_rate),
        Key("weight_decay", number(0, 1), "Decoupled weight decay.", 0.01),
        Key("optimizer", word(("adamw", "sgd")), "`sgd` has Nesterov momentum 0.9.",
            "adamw"),
        Key("schedule", word(("cosine", "constant")), "Of the rate, after a warm-up.",
            "cosine"),
        Key("patience", number(0, 10_000, whole=True),
            "Stop after so many epochs without a better metric; 0: never.", 0),
        Key("loss", _HOOK,
            "`f(outputs, labels) -> tensor` over torch tensors by name; empty: cross "
            "entropy for classes, squared error for numbers.", ""),
        Key("augment", _HOOK,
            "`f(inputs, generator) -> inputs` over torch tensors by name, for every "
            "batch; empty: none.", ""),
        Key("checkpoint_s", number(1, 86400),
            "Seconds between checkpoints; what a `kill -9` can lose.", 30.0),
    )  # fmt: skip


VERBS: dict[str, Table] = {
    "train": Table(_training(epochs=10, learning_rate=2e-3)),
    "prune": Table((
        Key("ratio", _RATIO, "Share of channels that go, over all rounds.", 0.5),
        Key("ratios", mapping(_RATIO, "table of layer → share"),
            "Shares of single layers, over `ratio`.", {}),
        Key("scope", word(("global", "layer")),
            "Whether layers compete for what stays, or each loses its share.",
            "global"),
        Key("importance", word(("l1", "l2", "taylor", "bn_scale")),
            "How channels are ranked; `taylor` needs labels or a loss.", "l2"),
        Key("keep", _NAMES, "Layers that are not touched.", ()),
        Key("rounds", number(1, 100, whole=True),
            "Prune and fine-tune so often, a part each time.", 1),
        Key("channel_multiple", number(0, 1024, whole=True),
            "Channel counts are multiples of it; 0: what the targets like.", 0),
        Key("structured", flag(),
            "false: single weights become zero. The artifact is no faster, only its "
            "compressed bundle is smaller.", True),
        *_training(epochs=5, learning_rate=1e-3),
    )),
    "distill": Table((
        Key("student", _FACTORY,
            "The network that learns; empty: the model as the passes before left it.",
            ""),
        Key("student_weights", _FILE, "What the student begins with.", ""),
        Key("teacher", _FACTORY,
            "Whom it learns from; empty: the model as it was before it was made "
            "smaller.", ""),
        Key("teacher_weights", _FILE, "The teacher's weights.", ""),
        Key("temperature", number(0.01, 1000), "Softens both answers.", 4.0),
        Key("alpha", number(0, 1),
            "Weight of the teacher's answer; the rest is for the labels.", 0.9),
        Key("labels", flag(), "Whether labels are used where there are any.", True),
        Key("hints", mapping(text("name of a layer of the teacher"),
                             "table of student layer → teacher layer"),
            "Layers whose outputs shall agree.", {}),
        Key("hint_weight", number(0, 1e6), "Weight of the hints in the loss.", 1.0),
        *_training(epochs=10, learning_rate=2e-3),
    )),
    "qat": Table((
        Key("scheme", word(("auto", "u8s8", "s8s8")),
            "Types of activations and weights; auto: what the target's int8 has.",
            "auto"),
        *_training(epochs=3, learning_rate=1e-4),
    )),
    "export": Table((
        Key("opset", number(18, 23, whole=True), "ONNX opset of the graph.", 20),
        Key("dynamic_batch", flag(), "Whether a variable batch is tried.", True),
        Key("tolerance", number(0, 1),
            "Largest difference to the module, in parts of the largest output.", 1e-5),
    )),
}  # fmt: skip
TRAINING = ("train", "distill", "qat")
"""Verbs that need ``[data] train`` whenever their ``epochs`` are not 0; prune too."""


def defaults(verb: str) -> dict[str, Any]:
    """Every parameter of a pass, with its default."""
    return {key.name: key.default for key in VERBS[verb].keys}


def trains(verb: str, parameters: dict[str, Any]) -> bool:
    """Whether a pass with these parameters needs training samples."""
    return bool({**defaults(verb), **parameters}.get("epochs", 0))
