"""Every wrong use is answered with the argument, what was given, what is expected and a way out."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_deadunits import (
    DeadUnitCallback,
    ReinitConfig,
    ZeroActivationRate,
    find_dead_units,
    reinit_dead_units,
)
from lightning_deadunits.observation.selection import check_possible
from lightning_deadunits.pytorch_lightning import DeadUnitCallback as Twin
from tests.zoo import kill


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    kill(made[0], 1)
    return made


class Named(nn.Module):
    """Two activations, one a module and one a function."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"fc": nn.Linear(4, 3), "relu": nn.ReLU()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.block["relu"](self.block["fc"](x)) - 1)


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
PAIRS = DataLoader(TensorDataset(X, torch.zeros(8)), batch_size=4)

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "unknown keyword": (
        lambda: DeadUnitCallback(dead_treshold=0.9), TypeError,
        "^DeadUnitCallback has no argument `dead_treshold`. Did you mean `dead_threshold`",
    ),
    "unknown keyword of the twin": (
        lambda: Twin(layer="x"), TypeError, "^DeadUnitCallback has no argument `layer`.*`layers`",
    ),
    "keyword like no other": (
        lambda: DeadUnitCallback(zzz=1), TypeError, "It takes `layers`, `exclude`, `dead_thr",
    ),
    "too many by position": (
        lambda: DeadUnitCallback(*[None] * 20), TypeError, "at most .* by position .*but got 20",
    ),
    "string for a number": (
        lambda: DeadUnitCallback(dead_threshold="0.9"), TypeError,
        r"`dead_threshold` to be a number in \(0, 1\], but got the string '0.9'. Write `0.9`",
    ),
    "percent for a fraction": (
        lambda: DeadUnitCallback(dead_threshold=90), ValueError, r"in \(0, 1\], but got 90",
    ),
    "not a number": (
        lambda: DeadUnitCallback(dead_threshold=float("nan")), ValueError, "but got nan",
    ),
    "float for an int": (
        lambda: DeadUnitCallback(every_n_batches=2.0), TypeError, "but got 2.0. Write `2`",
    ),
    "string for a tolerance": (
        lambda: DeadUnitCallback(atol="small"), TypeError, "but got the string 'small'.$",
    ),
    "string for a bool": (
        lambda: DeadUnitCallback(per_unit="no"), TypeError, "`per_unit` to be True or False",
    ),
    "dict for a config": (
        lambda: DeadUnitCallback(reinit={"patience": 3}), TypeError,
        r"Write `reinit=ReinitConfig\(patience=3\)`",
    ),
    "class for a config": (
        lambda: DeadUnitCallback(reinit=ReinitConfig), TypeError, "the class ReinitConfig itself",
    ),
    "number for a pattern": (
        lambda: DeadUnitCallback(layers=5), TypeError, "`layers` to be one or several names",
    ),
    "module for a pattern": (
        lambda: DeadUnitCallback(exclude=nn.ReLU()), TypeError, "got a ReLU. Give its name",
    ),
    "no pattern": (lambda: DeadUnitCallback(layers=[]), ValueError, "Leave it out to track every"),
    "unknown option": (
        lambda: ReinitConfig(patiense=3), TypeError, "ReinitConfig has no .*mean `patience`",
    ),
    "string for an option": (
        lambda: ReinitConfig(patience="3"), TypeError, "but got the string '3'. Write `3`",
    ),
    "misspelt criterion": (
        lambda: ReinitConfig(criterion="dormat"), ValueError, "'dormat'. Did you mean 'dormant'",
    ),
    "misspelt init": (
        lambda: ReinitConfig(init="defualt"), ValueError, "'defualt'. Did you mean `default`",
    ),
    "swapped": (
        lambda: find_dead_units(PAIRS, net()), TypeError,
        "`model` to be a torch.nn.Module, but got a DataLoader. `batches` is a Sequential: the m",
    ),
    "class for a model": (
        lambda: find_dead_units(nn.ReLU, [X]), TypeError, r"Make one: ReLU\(...\)",
    ),
    "one batch for many": (
        lambda: find_dead_units(net(), X), TypeError, r"Wrap .*: find_dead_units\(model, \[batch",
    ),
    "nothing to loop over": (
        lambda: find_dead_units(net(), 5), TypeError, "such as a DataLoader, but got 5",
    ),
    "pairs without forward": (
        lambda: find_dead_units(net(), PAIRS), TypeError,
        r"Sequential.forward takes \(input\), and a list has 2 .*forward=lambda model, batch: mod",
    ),
    "another key": (
        lambda: find_dead_units(net(), [{"x": X}]), TypeError, "takes .input., and a dict has x",
    ),
    "no batch": (lambda: find_dead_units(net(), [3]), TypeError, "a batch to be a tensor.*got 3"),
    "misspelt layer": (
        lambda: find_dead_units(Named(), [X], layers="block.rellu"), ValueError,
        "'block.rellu' matches none. Did you mean `block.relu`. Layers there are: block.relu, relu",
    ),
    "all excluded": (
        lambda: find_dead_units(Named(), [X], exclude="*"), ValueError,
        r"Expected `exclude` to leave a layer of any, but \['\*'\] matches all of them: block.re",
    ),
    "all that was asked for excluded": (
        lambda: find_dead_units(Named(), [X], layers="block.relu", exclude="block.*"), ValueError,
        r"leave a layer of those of `layers` = \['block.relu'\]",
    ),
    "misspelt layer of a Trainer": (
        lambda: check_possible(Named(), ["block.rellu"], None), ValueError,
        "'block.rellu' can match none. Did you mean `block.relu`. Activations there are: block.re",
    ),
    "forward that is none": (
        lambda: find_dead_units(net(), [X], forward=3), TypeError, "`forward` to be a function",
    ),
    "options by position": (
        lambda: find_dead_units(net(), [X], "1"), TypeError, "the others by name: forward, layers",
    ),
    "unit for units": (
        lambda: reinit_dead_units(net(), {"1": 1}, X), TypeError, "units of '1' to be a list",
    ),
    "list for a mapping": (
        lambda: reinit_dead_units(net(), [1], X), TypeError, "`units` to be a report .* a mapping",
    ),
    "example before units": (
        lambda: reinit_dead_units(net(), X, {"1": [1]}), TypeError,
        "Were `units` and `example` swapped",
    ),
    "units before the model": (
        lambda: reinit_dead_units({"1": [1]}, net(), X), TypeError, "the model comes first",
    ),
    "one optimizer": (
        lambda: reinit_dead_units(
            net(), {"1": [1]}, X, optimizers=torch.optim.SGD(net().parameters(), 1)
        ),
        TypeError, r"Write `optimizers=\[optimizer\]`",
    ),
    "optimizer in the singular": (
        lambda: reinit_dead_units(net(), {"1": [1]}, X, optimizer=[]), TypeError,
        "no argument `optimizer`. Did you mean `optimizers`",
    ),
    "config as a dict": (
        lambda: reinit_dead_units(net(), {"1": [1]}, X, config={}), TypeError, "a ReinitConfig",
    ),
    "number of units as a string": (
        lambda: ZeroActivationRate("3"), TypeError, "`num_units` to be an int >= 1.*Write `3`",
    ),
    "metric's keyword": (
        lambda: ZeroActivationRate(num_unit=3), TypeError, "Did you mean `num_units`",
    ),
    "no tensor": (
        lambda: ZeroActivationRate(3).update([1]), TypeError, "a real tensor, but got the list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_use_is_answered_with_the_right_one(
    case: tuple[Callable[[], Any], type[Exception], str],
) -> None:
    use, kind, message = case
    with pytest.raises(kind, match=message) as caught:
        use()
    assert "DeadUnitMonitor" not in str(caught.value)
    assert "__init__" not in str(caught.value)


@pytest.mark.parametrize("number", [0.9, 1, torch.tensor(0.9).item()])
def test_a_number_is_taken_whatever_its_kind(number: Any) -> None:
    assert DeadUnitCallback(dead_threshold=number).dead_threshold == number


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    assert DeadUnitCallback(dead_threshold=np.float32(0.5), every_n_batches=np.int64(2))


def test_the_signature_stays_visible_to_a_command_line() -> None:
    assert list(inspect.signature(DeadUnitCallback).parameters)[:3] == [
        "layers", "exclude", "dead_threshold",
    ]  # fmt: skip
    assert "patience" in inspect.signature(ReinitConfig).parameters
    assert "forward" in inspect.signature(find_dead_units).parameters


def test_forward_takes_of_a_batch_what_the_model_needs() -> None:
    found = find_dead_units(net(), PAIRS, forward=lambda model, batch: model(batch[0]))
    plain = find_dead_units(net(), [X])
    assert torch.equal(found["1"].zeros, plain["1"].zeros)
    assert found["1"].observations == plain["1"].observations == 8
    assert found["1"].dead.tolist() == [1]


def test_without_an_optimizer_it_is_said_once_what_stays() -> None:
    with pytest.warns(UserWarning, match=r"no optimizer: what an optimizer remembers.*stays"):
        done = reinit_dead_units(net(), {"1": [1]}, X)
    assert done.reinitialised == {"1": [1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reinit_dead_units(net(), {"1": [1]}, X, optimizers=None).reinitialised
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        assert reinit_dead_units(model, {"1": [1]}, X, optimizers=[optimizer]).reinitialised
