"""The elements of parameters that make or read a channel of a call."""

from __future__ import annotations

from torch import Tensor

from lightning_deadunits.reinit.operations import Channel, Where
from lightning_deadunits.reinit.running.session import Session
from lightning_deadunits.reinit.tracing.trace import Part, Role


def making_parts(session: Session, maker: Channel) -> list[Part]:
    """Return the weights that make a channel of what a contraction, norm or factor returns."""
    index, channel = maker
    operation = session.recorded.calls[index].operation
    if operation.kind == "link":
        return link_parts(session, maker)
    norm = operation.kind == "norm"
    weight, bias = operation.weight, operation.bias
    return [
        *_parts(session, maker, "scale" if norm else "weight", weight, operation.makes(channel)),
        *_parts(session, maker, "shift" if norm else "bias", bias, operation.biases(channel)),
    ]


def link_parts(session: Session, link: Channel) -> list[Part]:
    """Return what is added to a channel on its way, or multiplied with it."""
    operation = session.recorded.calls[link[0]].operation
    where = operation.makes(link[1])
    role: Role = "scale" if operation.scales else "shift"
    # One number for all channels belongs to none of them.
    return _parts(session, link, role, operation.weight, where) if where else []


def reading_parts(session: Session, reader: Channel) -> list[Part]:
    """Return the weights that a channel is read with."""
    operation = session.recorded.calls[reader[0]].operation
    where = operation.reads(reader[1])
    if operation.kind != "norm":
        return _parts(session, reader, "weight", operation.weight, where)
    return [
        *_parts(session, reader, "scale", operation.weight, where),
        *_parts(session, reader, "shift", operation.bias, where),
    ]


def _parts(
    session: Session, of: Channel, role: Role, view: Tensor | None, where: Where
) -> list[Part]:
    """Return the part of a parameter; none of what is no parameter, as a frozen norm's buffers."""
    if view is None or session.parameters.owner(view) is None:
        return []
    return [Part(*of, role, session.parameters.part(view, where), view)]
