"""What a 32-bit ARM device runs: tflite-runtime 2.14.0, and what that cannot do.

There is no newer LiteRT for armv7. The rules kept here:

1. An artifact for it asks for no operator, and no version of one, that this release
   does not have: :data:`OPERATORS`, which was asked of the release itself.
2. The release needs NumPy 1 and so an environment of its own, ``.venv-armv7``, which
   ``scripts/setup armv7`` makes. Where it is, every artifact is run there, in a process
   of its own, and what it answers is judged and becomes the golden vectors: its kernels
   round otherwise than LiteRT's, and on x86-64 as on Arm (bit for bit, under QEMU).
3. Where it is not, the table alone decides, and the report says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from device_agent.contract.errors import ArtifactError
from device_agent.contract.manifest import Option
from device_agent.runtimes.base import Session
from device_agent.runtimes.elsewhere import Elsewhere

from .errors import BackendError

RELEASE: Final = "tflite-runtime 2.14.0"
COUNTS_AS: Final = "0.2.14"
"""Its version among LiteRT's (:mod:`device_agent.runtimes.litert`)."""
ENVIRONMENT: Final = Path(__file__).resolve().parents[1] / ".venv-armv7"
SETUP: Final = "scripts/setup armv7"

_VERSIONS: Final = {
    1: (
        "ADD_N ASSIGN_VARIABLE ATAN2 BITCAST BITWISE_XOR BROADCAST_ARGS BUCKETIZE "
        "CALL_ONCE CEIL COMPLEX_ABS CONV_3D CONV_3D_TRANSPOSE COS CUMSUM DENSIFY "
        "DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP_SPARSE EXPAND_DIMS FLOOR "
        "HARD_SWISH HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_LOOKUP "
        "HASHTABLE_SIZE IF IMAG L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOG "
        "LOGICAL_AND LOGICAL_NOT LOGICAL_OR LSH_PROJECTION MATRIX_DIAG "
        "MATRIX_SET_DIAG MULTINOMIAL NEG NON_MAX_SUPPRESSION_V4 "
        "NON_MAX_SUPPRESSION_V5 ONE_HOT POW PRELU RANDOM_STANDARD_NORMAL "
        "RANDOM_UNIFORM RANK READ_VARIABLE REAL REDUCE_ALL REDUCE_ANY RELU_0_TO_1 "
        "RELU_N1_TO_1 RESHAPE REVERSE_SEQUENCE RFFT2D RIGHT_SHIFT ROUND SCATTER_ND "
        "SEGMENT_SUM SHAPE SIN SKIP_GRAM SQRT SQUARE UNIQUE UNSORTED_SEGMENT_MAX "
        "UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM VAR_HANDLE "
        "WHILE ZEROS_LIKE"
    ),
    2: (
        "DEPTH_TO_SPACE DIV EXP FAKE_QUANT FLOOR_MOD GELU GREATER L2_NORMALIZATION "
        "LEAKY_RELU LESS_EQUAL LOG_SOFTMAX RANGE REDUCE_PROD RSQRT SELECT_V2 SIGN "
        "SPACE_TO_DEPTH SPLIT_V SQUARED_DIFFERENCE SQUEEZE SUM WHERE"
    ),
    3: (
        "ARG_MAX ARG_MIN AVERAGE_POOL_2D BIDIRECTIONAL_SEQUENCE_LSTM "
        "BIDIRECTIONAL_SEQUENCE_RNN BROADCAST_TO EMBEDDING_LOOKUP FLOOR_DIV "
        "GREATER_EQUAL LESS LOGISTIC MAX_POOL_2D MEAN MIRROR_PAD NOT_EQUAL QUANTIZE "
        "REDUCE_MAX REDUCE_MIN RELU RELU6 REVERSE_V2 RNN SOFTMAX SPARSE_TO_DENSE TANH "
        "TILE TOPK_V2 UNIDIRECTIONAL_SEQUENCE_RNN"
    ),
    4: (
        "BATCH_MATMUL BATCH_TO_SPACE_ND CONCATENATION EQUAL FILL GATHER_ND LSTM "
        "MAXIMUM MINIMUM PACK PAD PADV2 RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR "
        "SELECT SPACE_TO_BATCH_ND SPLIT SVDF TRANSPOSE_CONV "
        "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK"
    ),
    5: ("ABS ADD CAST DEQUANTIZE SUB"),
    6: ("GATHER SLICE TRANSPOSE"),
    7: ("CONV_2D DEPTHWISE_CONV_2D MUL"),
    8: ("STRIDED_SLICE"),
    10: ("FULLY_CONNECTED"),
}
OPERATORS: Final[Mapping[str, int]] = {
    name: version for version, names in _VERSIONS.items() for name in names.split()
}
"""Builtin operator → the highest version of it that the release registers."""


def missing(versions: Mapping[str, int]) -> list[str]:
    """What the release lacks of these operators, each with what it has; empty: nothing.

    >>> missing({"CONV_2D": 3, "FULLY_CONNECTED": 12})
    ['FULLY_CONNECTED version 12 (it has 10)']
    """
    return [
        f"{name} version {version} "
        + (f"(it has {OPERATORS[name]})" if name in OPERATORS else "(it has none)")
        for name, version in versions.items()
        if version > OPERATORS.get(name, 0)
    ]


def python() -> Path | None:
    """The Python of the release's environment; None where it was not made."""
    found = ENVIRONMENT / "bin" / "python"
    return found if found.exists() else None


def how() -> str:
    """How an artifact is validated on this host, in words."""
    if python() is None:
        return (
            f"operator versions compared with those of {RELEASE}, which did not run "
            f"here ({SETUP} installs it)"
        )
    return f"every artifact run by {RELEASE}"


def opened(artifact: Path, options: Mapping[str, Option]) -> Session:
    """An artifact in the release, in a process of its own.

    Raises:
        BackendError: it refuses the artifact, or dies of it.
        RuntimeError: the environment is not there; ask :func:`python` first.
    """
    found = python()
    if found is None:
        raise RuntimeError(f"{ENVIRONMENT} is not there; {SETUP} makes it")
    try:
        return Elsewhere(found, "litert", artifact, options)
    except ArtifactError as error:
        raise BackendError(f"{RELEASE} cannot run it: {error}") from error
