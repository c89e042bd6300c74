"""DeadUnitCallback for ``lightning.pytorch``."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_deadunits.monitor import DeadUnitMonitor


class DeadUnitCallback(DeadUnitMonitor, Callback):
    """Finds units that never fire, logs them at every validation, and revives them on request.

    Every activation of the model is counted during validation, whether a module, a function or a
    method computes it: :class:`~lightning_deadunits.DeadUnitsReport` in ``report`` afterwards. A
    unit is dead if its zero-activation rate over the whole validation epoch, on all processes, is
    at least ``dead_threshold``. Training is not touched unless ``reinit`` asks for it.

    Logged are ``dead_fraction/total``, ``dead_fraction/<layer>``, ``zero_rate/<layer>`` and
    ``dead_layers``; to TensorBoard also the distribution and the vector of rates of every layer.
    In a checkpoint's file name write ``auto_insert_metric_name=False``: the names hold a slash.

    Args:
        layers: One or several patterns (as in ``fnmatch``) of layers to track, by default every
            activation that can be zero at rest. The full name of any other module has its output
            tracked.
        exclude: One or several patterns of layers to leave out.
        dead_threshold: Zero-activation rate in (0, 1] from which on a unit is dead.
        atol: Magnitude up to which a value counts as zero. By default exactly zero for activations
            that can be so (ReLU), 0.001 for smooth ones (GELU, SiLU, Mish, Softplus).
        reinit: Whether to give dead units a new life, or how in detail.
        per_unit: Whether to write the vector of rates that TensorBoard's Dead Units tab shows.
        custom_scalars: Whether to lay out one chart with all layers in TensorBoard's Custom
            Scalars tab.

    Raises:
        ValueError: If an argument is out of its range.
        SelectionError: Before training, if a pattern matches no layer or no activation runs; it is
            a ValueError, too.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DeadUnitCallback()], logger=False, barebones=True)
    """
