"""What torch functions do that matters to a recording, told by their names.

A recording holds calls, and a call that returns no tensor is not followed any further. So it must
be known whether it only looks at a shape, or reads values, which Python may then act upon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_GETTER, _SETTER = "__get__", "__set__"

_METADATA = {
    *(
        "shape",
        "size",
        "dim",
        "ndim",
        "ndimension",
        "dtype",
        "device",
        "layout",
        "numel",
        "nelement",
    ),
    *("stride", "is_contiguous", "element_size", "itemsize", "nbytes", "storage_offset", "names"),
    *("is_floating_point", "is_complex", "is_signed", "is_conj", "is_neg", "is_nested", "is_meta"),
    *(
        "is_cuda",
        "is_cpu",
        "is_mps",
        "is_xpu",
        "is_mkldnn",
        "is_mtia",
        "is_ipu",
        "is_maia",
        "is_xla",
    ),
    *("is_sparse", "is_sparse_csr", "is_quantized", "is_inference", "is_leaf", "is_pinned"),
    *("is_shared", "is_tensor", "is_same_size", "get_device", "has_names", "output_nr", "volatile"),
    *("requires_grad", "grad_fn", "retains_grad", "_version", "__len__", "__hash__", "__dir__"),
    *("_has_symbolic_sizes_strides", "_is_view", "_is_zerotensor", "_dimI", "_dimV", "sparse_dim"),
    *("dense_dim", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"),
    *("_backward_hooks", "_post_accumulate_grad_hooks", "_grad_fn", "result_type", "can_cast"),
    *("broadcast_shapes", "_set_grad_enabled", "dim_order", "_make_dtensor", "_nested_get"),
    *(
        "__dlpack_device__",
        "_is_all_true_",
        "is_distributed",
        "is_coalesced",
        "_sizes",
        "_indices_",
    ),
    *("_record_function_enter_new", "_RecordFunction", "_record_function_exit", "is_storage"),
    *(
        "_use_cudnn_rnn_flatten_weight",
        "get_default_dtype",
        "is_autocast_enabled",
        "seed_everything",
    ),
}
"""What returns no value of a tensor, or nothing of its own (grad mode, the profiler)."""

_MEMORY = {
    *("numpy", "__array__", "data_ptr", "untyped_storage", "storage", "_typed_storage"),
    *("__dlpack__", "__cuda_array_interface__", "share_memory_", "__reduce_ex__", "const_data_ptr"),
}
"""What hands out a tensor's memory: it may be read, and written, by code that no call shows."""

_RANDOM = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
    *("feature_dropout", "dropout_", "alpha_dropout_", "feature_dropout_", "native_dropout"),
    *("feature_alpha_dropout_", "rand", "rand_like", "randn", "randn_like", "randint", "randperm"),
    *("randint_like", "normal", "normal_", "uniform_", "bernoulli", "bernoulli_", "multinomial"),
    *("exponential_", "geometric_", "cauchy_", "log_normal_", "random_", "poisson", "binomial"),
    *(
        "gumbel_softmax",
        "rrelu",
        "rrelu_",
        "scaled_dot_product_attention",
        "lstm",
        "gru",
        "rnn_tanh",
    ),
    *("rnn_relu", "multi_head_attention_forward", "fractional_max_pool2d", "fractional_max_pool3d"),
    *("fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices", "trunc_normal_"),
    *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_"),
    *("_standard_gamma", "_sample_dirichlet", "standard_gamma"),
}

_EMPTY = {
    *(
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "empty_permuted",
        "resize_",
    ),
}

_SCALERS = {"_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"}
"""What a gradient scaler calls: a loss scale is no value that the model computes."""


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name; that of the attribute for what gets or sets one."""
    name = getattr(function, "__name__", "")
    if name in (_GETTER, _SETTER):
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return str(name) or str(function)


def sets_attribute(function: Callable[..., Any]) -> bool:
    """Tell whether a call sets an attribute of a tensor, as in ``x.data = y``."""
    return getattr(function, "__name__", "") == _SETTER


def is_metadata(name: str) -> bool:
    """Tell whether a function that returns no tensor looks at no value either."""
    return name in _METADATA


def hands_out_memory(name: str) -> bool:
    """Tell whether a function gives away where a tensor's values are."""
    return name in _MEMORY


def scales_gradients(name: str) -> bool:
    """Tell whether a function is a gradient scaler's own arithmetic."""
    return name in _SCALERS


def is_random(name: str) -> bool:
    """Tell whether a function may draw random numbers."""
    return name in _RANDOM


def is_empty(name: str) -> bool:
    """Tell whether a function returns memory that nobody has written yet."""
    return name in _EMPTY


BACKWARD = {Tensor.backward, torch.autograd.backward}
"""What runs autograd: it is one call, whose effects (gradients) no replay needs."""

GRADIENT = torch.autograd.grad
"""What a step calls that takes gradients itself: its results are values like any others."""
