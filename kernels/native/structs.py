"""The C structures of attention.h, elementwise.h, linear.h and layers.h, field by field, for ctypes."""

from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from typing import Any, ClassVar


class Weight(Structure):
    """Of linear.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("values", c_void_p),
        ("bias", c_void_p),
        ("out_width", c_int64),
        ("in_width", c_int64),
        ("format", c_int64),
        ("digits", c_void_p),
        ("scales", c_void_p),
    ]


class Heads(Structure):
    """Of attention.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
    ]


class StepShape(Structure):
    """Of attention.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("block_tables", c_void_p),
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("num_seqs", c_int64),
        ("table_stride", c_int64),
        ("block_size", c_int64),
        ("window", c_int64),
        ("positions", c_void_p),
    ]


class ProjectedHeads(Structure):
    """Of elementwise.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("rows", c_void_p),
        ("num_rows", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("norm_weight", c_void_p),
        ("eps", c_float),
        ("key_cache", c_void_p),
        ("value_cache", c_void_p),
        ("slots", c_void_p),
    ]


class Angles(Structure):
    """Of elementwise.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [("cos", c_void_p), ("sin", c_void_p)]


class Layer(Structure):
    """Of layers.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("qkv", Weight),
        ("attention_output", Weight),
        ("gate_up", Weight),
        ("down", Weight),
    ]


class Stack(Structure):
    """Of layers.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("layers", POINTER(Layer)),
        ("num_layers", c_int64),
        ("final_norm", c_void_p),
        ("heads", Heads),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("eps", c_float),
        ("scale", c_float),
    ]


class StackStep(Structure):
    """Of layers.h."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("shape", StepShape),
        ("num_rows", c_int64),
        ("angles", Angles),
        ("slots", c_void_p),
        ("kv_cache", c_void_p),
        ("cache_stride", c_int64),
        ("residual", c_void_p),
        ("hidden", c_void_p),
        ("scratch", c_void_p),
    ]
