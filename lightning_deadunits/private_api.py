"""Private names of torch and Lightning that matter, in one place, with what stands in for them.

Each function says what happens where the name is missing: torch may move it in any release.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def without_torch_function() -> Any:
    """Return a context in which no ``__torch_function__`` mode or subclass is called.

    ``torch._C.DisableTorchFunction``. Without it nothing here could count or record: our own calls
    would be taken for the user's, so its absence is an error.
    """
    return torch._C.DisableTorchFunction()


def is_functorch_tensor(tensor: Tensor) -> bool:
    """Tell whether a tensor stands for many values at once, inside of ``torch.func`` or ``vmap``.

    ``torch._C._functorch.is_functorch_wrapped_tensor``. Without it such tensors are taken for plain
    ones; a replay then fails, and the units are refused.
    """
    functorch = getattr(torch._C, "_functorch", None)
    tell = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return bool(tell(tensor)) if tell is not None else False


def is_running_backward() -> bool:
    """Tell whether autograd is running backward in this thread.

    ``torch._C._current_graph_task_id``. Without it what gradient checkpointing computes anew in the
    backward pass is recorded as well, which costs time, and is otherwise harmless.
    """
    task: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1


def is_in_step(module: Any) -> bool:
    """Tell whether a LightningModule's step is running, rather than hooks, also those within it.

    ``LightningModule._current_fx_name``. Without it whatever runs between two hooks of ours is
    counted and recorded, other callbacks' calls included; units may be refused for what these do
    with weights.
    """
    return getattr(module, "_current_fx_name", None) in _STEPS


_STEPS = (None, "training_step", "validation_step", "test_step", "predict_step")


def has_compiled_parts(model: nn.Module) -> bool:
    """Tell whether a module of a model is compiled; of functions nothing tells it.

    ``Module._compiled_call_impl``, and ``LightningModule._compiler_ctx``, for Lightning takes a
    compiled module apart. Without them it is not said that recorded batches run uncompiled.
    """
    notes = ("_compiled_call_impl", "_compiler_ctx")
    return any(
        type(module).__name__ == "OptimizedModule"
        or any(getattr(module, note, None) is not None for note in notes)
        for module in model.modules()
    )


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written in place, -1 if torch does not count it.

    ``Tensor._version``. Inference tensors have none: writes that no call shows go unnoticed there,
    unless the replay computes something else than the recorded pass.
    """
    return -1 if tensor.is_inference() else int(getattr(tensor, "_version", -1))


def is_python_operator(function: Any) -> bool:
    """Tell whether an operator was defined in Python, by ``torch.library.custom_op``.

    ``torch._library.custom_ops.OPDEFS``. Without it a replay runs the user's operator once more.
    """
    if not isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return False
    packet = getattr(function, "overloadpacket", function)
    defined = getattr(sys.modules.get("torch._library.custom_ops"), "OPDEFS", {})
    return getattr(packet, "_qualified_op_name", None) in defined
