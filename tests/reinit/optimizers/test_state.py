"""What an optimizer remembers of weights is reset in part, or refused untouched."""

import copy

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import optim

from lightning_deadunits.reinit.optimizers.state import optimizers_inside, refusal, reset_
from lightning_deadunits.reinit.weights import WeightSlice


class Lion(optim.Optimizer):
    """A third-party optimizer with a name of its own for its state (Chen et al. 2023)."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                running = self.state[p].setdefault("running", torch.zeros_like(p))
                p.sub_(torch.sign(0.9 * running + 0.1 * p.grad), alpha=group["lr"])
                running.lerp_(p.grad, 0.01)


RESETTABLE = {
    "SGD": lambda p: optim.SGD(p, lr=1e-2, momentum=0.9),
    "SGD nesterov": lambda p: optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "SGD plain": lambda p: optim.SGD(p, lr=1e-2),
    "Adam": lambda p: optim.Adam(p),
    "Adam amsgrad": lambda p: optim.Adam(p, amsgrad=True),
    "Adam fused": lambda p: optim.Adam(p, fused=True),
    "AdamW": lambda p: optim.AdamW(p),
    "NAdam": lambda p: optim.NAdam(p),
    "RAdam": lambda p: optim.RAdam(p),
    "Adamax": lambda p: optim.Adamax(p),
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, initial_accumulator_value=0.25),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Rprop": lambda p: optim.Rprop(p, lr=1e-3),
    "ASGD": lambda p: optim.ASGD(p, t0=0, lambd=0.0),
    "Lion": lambda p: Lion(p),
}
MATRIX_ONLY = {}
if hasattr(optim, "Muon"):  # torch >= 2.9
    MATRIX_ONLY["Muon"] = lambda p: optim.Muon(p)


def params_after_steps(make, shapes=((4, 3), (4,)), steps=5):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    optimizer = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params, optimizer


def new_state(make, params):
    """The state that a new optimizer has after a step without gradient, from first principles."""
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer = make(fresh)
    for p in fresh:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    return [optimizer.state[p] for p in fresh]


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", RESETTABLE | MATRIX_ONLY)
def test_reset_slices_are_new_and_all_else_is_untouched(name):
    make = (RESETTABLE | MATRIX_ONLY)[name]
    params, optimizer = params_after_steps(
        make, ((4, 3),) if name in MATRIX_ONLY else ((4, 3), (4,))
    )
    before = copy.deepcopy([optimizer.state[p] for p in params])
    reset_([optimizer], [WeightSlice.along(p, {0: [1, 2]}) for p in params])
    for p, old, new in zip(params, before, new_state(make, params), strict=True):
        now = optimizer.state.get(p, {})
        assert now.keys() == old.keys()
        for key, value in now.items():
            if not (isinstance(value, torch.Tensor) and value.shape == p.shape):
                assert same(value, old[key])
                continue
            # Adamax's norm of a zero gradient is its eps.
            torch.testing.assert_close(value[[1, 2]], new[key][[1, 2]], rtol=0, atol=2e-8)
            assert torch.equal(value[[0, 3]], old[key][[0, 3]])
            assert not torch.equal(value[[1, 2]], old[key][[1, 2]])


@pytest.mark.parametrize("name", RESETTABLE)
def test_state_absent_before_the_first_step_stays_absent(name):
    params, optimizer = params_after_steps(RESETTABLE[name], steps=0)
    before = {id(p): dict(s) for p, s in optimizer.state.items()}  # Adagrad has one from the start
    reset_([optimizer], [WeightSlice.along(params[0], {0: [1]})])
    assert optimizer.state.keys() == {p for p in params if id(p) in before}


def test_a_missing_momentum_buffer_is_no_obstacle():
    params, optimizer = params_after_steps(RESETTABLE["SGD"])
    optimizer.state[params[0]]["momentum_buffer"] = None
    reset_([optimizer], [WeightSlice.along(params[0], {1: [0]})])
    assert optimizer.state[params[0]] == {"momentum_buffer": None}


def test_columns_and_blocks_are_reset_too():
    params, optimizer = params_after_steps(RESETTABLE["Adam"])
    reset_([optimizer], [WeightSlice.along(params[0], {0: [0, 1], 1: [2]})])
    zero = optimizer.state[params[0]]["exp_avg"] == 0
    expected = torch.zeros(4, 3, dtype=torch.bool)
    expected[:2, 2] = True
    assert torch.equal(zero, expected)


def test_a_parameter_that_no_optimizer_has_is_fine():
    stranger = torch.nn.Parameter(torch.zeros(3, 2))
    _, optimizer = params_after_steps(RESETTABLE["Adam"])
    assert refusal(optimizer, stranger) is None
    reset_([optimizer], [WeightSlice.along(stranger, {0: [1]})])
    reset_([], [WeightSlice.along(stranger, {0: [1]})])
    assert stranger not in optimizer.state


def test_parameters_are_found_by_identity_over_several_optimizers_and_groups():
    torch.manual_seed(0)
    a, b, c = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    first, second = optim.SGD([a], momentum=0.9), optim.Adam([{"params": [b]}, {"params": [c]}])
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    first.step()
    second.step()
    reset_([first, second], [WeightSlice.along(p, {0: [1]}) for p in (a, c)])
    assert torch.equal(first.state[a]["momentum_buffer"], torch.tensor([[1.0, 1], [0, 0]]))
    assert bool((second.state[c]["exp_avg"][1] == 0).all())
    assert bool((second.state[b]["exp_avg"] != 0).all())


def test_lightnings_wrapper_is_unwrapped():
    params, optimizer = params_after_steps(RESETTABLE["Adam"])
    wrapper = LightningOptimizer(optimizer)
    assert optimizers_inside(wrapper) == [optimizer]
    reset_([wrapper], [WeightSlice.along(params[0], {0: [0]})])
    assert bool((optimizer.state[params[0]]["exp_avg"][0] == 0).all())


def test_a_wrapper_with_a_memory_of_its_own_forgets_too():
    class Lookahead(optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer
            super().__init__(optimizer.param_groups, {})
            for p in params:
                self.state[p]["slow_param"] = torch.full_like(p, 7.0)

    params, inner = params_after_steps(RESETTABLE["Adam"])
    wrapper = Lookahead(inner)
    reset_([wrapper], [WeightSlice.along(params[0], {0: [0]})])
    assert bool((inner.state[params[0]]["exp_avg"][0] == 0).all())
    slow = wrapper.state[params[0]]["slow_param"]
    assert torch.equal(slow[0], params[0].detach()[0])
    assert bool((slow[1:] == 7.0).all())


@pytest.mark.parametrize(
    ("key", "offset", "is_copy"),
    [
        ("x0", 5.0, True),
        ("z", 1e-3, True),
        ("z", 5.0, False),
        ("lookahead_params", 1.0, True),
        ("slow_momentum", 1.0, False),
    ],
)
def test_copies_of_weights_are_told_from_memories_of_gradients(key, offset, is_copy):
    """Defazio and Jelassi, "MADGRAD", 2021: dual averaging sets out from the first weights."""
    params, optimizer = params_after_steps(RESETTABLE["Adam"])
    optimizer.state[params[0]][key] = params[0].detach() + offset
    params[0].data[0] = 3.0
    reset_([optimizer], [WeightSlice.along(params[0], {0: [0]})])
    state = optimizer.state[params[0]][key]
    assert bool((state[0] == (3.0 if is_copy else 0.0)).all())
    assert torch.equal(state[1:], params[0].detach()[1:] + offset)


def test_what_is_no_optimizer_is_an_error():
    with pytest.raises(TypeError, match=r"Expected `optimizer` to be a torch\.optim\.Optimizer"):
        optimizers_inside(torch.nn.Linear(1, 1))


def with_state(**state):
    params, optimizer = params_after_steps(RESETTABLE["SGD plain"])
    optimizer.state[params[0]].update(state)
    return params[0], optimizer


class Wrapped(torch.Tensor):
    pass


def adafactor():
    params, optimizer = params_after_steps(lambda p: optim.Adafactor(p))
    return params[0], optimizer


def lbfgs():
    weight = torch.nn.Parameter(torch.ones(4, 3))
    return weight, optim.LBFGS([weight])


class ZeroRedundancyOptimizer(optim.SGD):
    pass


def zero():
    weight = torch.nn.Parameter(torch.ones(4, 3))
    return weight, ZeroRedundancyOptimizer([weight])


REFUSED = {
    "row_var` has shape": adafactor,
    "flat vector": lbfgs,
    "on other ranks": zero,
    "one element of it serves several": lambda: with_state(preconditioner=torch.eye(4)),
    "is a list": lambda: with_state(factors=[torch.eye(4)]),
    "quantised or sparse": lambda: with_state(state1=torch.zeros(4, 3, dtype=torch.uint8)),
    "is a Wrapped": lambda: with_state(m=torch.zeros(4, 3).as_subclass(Wrapped)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_state_that_cannot_be_reset_in_part_is_refused_and_untouched(reason):
    weight, optimizer = REFUSED[reason]()
    good = torch.nn.Parameter(torch.ones(2, 2))
    adam = optim.Adam([good])
    good.grad = torch.ones_like(good)
    adam.step()
    before = repr((adam.state_dict(), optimizer.state_dict()))
    assert reason in (refusal(optimizer, weight) or "")
    slices = [WeightSlice.along(good, {0: [0]}), WeightSlice.along(weight, {0: [0]})]
    with pytest.raises(ValueError, match="Expected state that can be reset in part, but"):
        reset_([adam, optimizer], slices)
    assert before == repr((adam.state_dict(), optimizer.state_dict()))


def test_the_step_count_of_a_scalar_parameter_stays():
    params, optimizer = params_after_steps(RESETTABLE["Adam"], shapes=((),))
    reset_([optimizer], [WeightSlice.along(params[0], {})])
    assert optimizer.state[params[0]]["step"] == 5
    assert optimizer.state[params[0]]["exp_avg"] == 0
