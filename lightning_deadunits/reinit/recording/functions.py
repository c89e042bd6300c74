"""What torch functions do that matters to a recording, told by their names.

A recording holds calls, and a call that returns no tensor is not followed any further. So it must
be known whether it only looks at a shape, or reads values, which Python may then act upon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lightning_deadunits.observation.lineage.ways import writes_and_returns
from lightning_deadunits.private_api import is_python_operator


def _words(*groups: str) -> frozenset[str]:
    return frozenset(word for group in groups for word in group.split())


METADATA = _words(
    # What a tensor is.
    """
    shape size dim ndim ndimension dtype device layout numel nelement stride is_contiguous
    element_size itemsize nbytes storage_offset names __len__ __hash__ __dir__ dim_order sparse_dim
    dense_dim get_device has_names is_floating_point is_complex is_signed is_conj is_neg is_nested
    is_meta is_cuda is_cpu is_mps is_xpu is_mkldnn is_mtia is_ipu is_maia is_xla is_sparse
    is_sparse_csr is_quantized is_inference is_leaf is_pinned is_shared is_tensor is_same_size
    is_distributed is_coalesced is_storage result_type can_cast broadcast_shapes __dlpack_device__
    _is_view _is_zerotensor _is_all_true_ _dimI _dimV _sizes _indices_ _nested_get _make_dtensor
    _has_symbolic_sizes_strides
    """,
    # What autograd knows of it.
    """
    requires_grad grad_fn retains_grad output_nr volatile _version _grad_fn register_hook
    register_post_accumulate_grad_hook retain_grad _backward_hooks _post_accumulate_grad_hooks
    """,
    # Modes, the profiler, and what else is no tensor's.
    """
    _set_grad_enabled _record_function_enter_new _record_function_exit _RecordFunction
    _use_cudnn_rnn_flatten_weight get_default_dtype is_autocast_enabled seed_everything
    """,
)
"""What returns no value of a tensor, or nothing of its own: it looks at no value either."""

DRAWS = _words(
    """
    rand rand_like randn randn_like randint randint_like randperm normal uniform random bernoulli
    exponential cauchy log_normal geometric poisson multinomial
    """
)
"""Without their underscores: what returns random numbers, whatever it is given."""

RANDOM = DRAWS | _words(
    """
    binomial standard_gamma sample_dirichlet gumbel_softmax rrelu
    dropout dropout1d dropout2d dropout3d native_dropout alpha_dropout
    feature_dropout feature_alpha_dropout
    fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices
    fractional_max_pool3d_with_indices
    scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh rnn_relu
    trunc_normal kaiming_uniform kaiming_normal xavier_uniform xavier_normal orthogonal
    """
)
"""Likewise: what may draw random numbers."""

FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray, torch.linspace, torch.logspace}
FROM_PYTHON.add(Tensor.new_tensor)
"""What makes data of what is no tensor: lists, arrays, a grid."""

EMPTY = _words("empty empty_like empty_strided new_empty new_empty_strided empty_permuted resize_")
"""What returns memory that nobody has written yet."""

SCALERS = {"_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"}
"""A gradient scaler's own: a loss scale is no value of the model's."""


CUTS = _words(
    """
    __getitem__ select narrow chunk split split_with_sizes tensor_split unbind unsafe_chunk
    unsafe_split hsplit vsplit dsplit diagonal
    """
)
"""Functions that return views of parts."""

VIEWS = _words(
    """
    view reshape flatten unflatten t T mT transpose permute squeeze unsqueeze expand swapaxes
    swapdims movedim moveaxis detach view_as data
    """
)
"""Functions that return views of all, or copies."""


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name; that of the attribute for what gets or sets one."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__"):
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    return str(name) or str(function)


DESCRIBED: set[Callable[..., Any]] = set()
"""Functions of which :mod:`~lightning_deadunits.reinit.ops.registry` knows what they do."""


def is_own_code(function: Callable[..., Any]) -> bool:
    """Tell whether a call runs Python of the user's, which a replay would run a second time."""
    if function in DESCRIBED:
        return False
    module = str(getattr(function, "__module__", None) or "torch")
    own = isinstance(function, FunctionType) and module.partition(".")[0] != "torch"
    return own or is_python_operator(function)


_IN_PLACE = {"all_reduce", "broadcast", "reduce"}
_INTO_THE_FIRST = {
    *("all_gather", "all_gather_into_tensor", "all_gather_single", "reduce_scatter"),
    *("reduce_scatter_tensor", "reduce_scatter_single", "all_to_all", "all_to_all_single"),
}
"""Collectives of ``torch.distributed``, by where they write what they receive."""


def is_exchange(function: Callable[..., Any]) -> bool:
    """Tell whether a call exchanges tensors with other processes, by an operator as well."""
    module = str(getattr(function, "__module__", ""))
    return module.startswith("torch.distributed") or (
        module.startswith(("torch._ops", "torch.ops")) and "c10d" in str(function)
    )


def exchanged(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Any] | None:
    """Return what a collective sends and what it writes into, None if that is not known so far."""
    name = name_of(function)
    if not args or kwargs.get("async_op", False):
        return None
    if name in _IN_PLACE:
        return args[0], args[0]
    return ((args[1:], dict(kwargs)), args[0]) if name in _INTO_THE_FIRST else None


def sets_attribute(function: Callable[..., Any]) -> bool:
    """Tell whether a call sets an attribute of a tensor, as in ``x.data = y``."""
    return getattr(function, "__name__", "") == "__set__"


def writes_in_place(name: str) -> bool:
    """Tell by a function's name whether it writes into what it is given."""
    return writes_and_returns(name) or name.startswith("__set")


def overwrites(name: str) -> bool:
    """Tell by a function's name whether it writes all of its first argument, and reads none."""
    drawn = name.endswith("_") and name.strip("_") in DRAWS
    return drawn or name in ("fill_", "zero_", "copy_")


BACKWARD = {Tensor.backward, torch.autograd.backward}
"""What runs autograd: it is one call, whose effects (gradients) no replay needs."""

GRADIENT = torch.autograd.grad
"""What a step calls that takes gradients itself: its results are values like any others."""
