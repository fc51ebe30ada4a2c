"""Which parameters an option of ``memd.quantization`` stores quantised, and how."""

from collections.abc import Mapping
from enum import Enum, auto

from kernels.quantised import WeightFormat


class ParameterKind(Enum):
    """What a parameter is for, as far as storing it goes."""

    SMALL = auto()  # norms and biases: a thousandth of the bytes
    LINEAR = auto()  # a layer's matrix
    VOCABULARY = auto()  # a row a token: embedding and output head


NONE = "none"
QUANTIZATIONS: Mapping[str, Mapping[ParameterKind, WeightFormat]] = {
    NONE: {},
    "int8": {ParameterKind.LINEAR: WeightFormat.INT8, ParameterKind.VOCABULARY: WeightFormat.INT8},
    # Logits show every error of the head's, which is one matrix of many.
    "int4": {ParameterKind.LINEAR: WeightFormat.INT4, ParameterKind.VOCABULARY: WeightFormat.INT8},
}
