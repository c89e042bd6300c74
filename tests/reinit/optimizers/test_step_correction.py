"""Revived weights count their own steps, exactly, whatever the optimizer and its loop do."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import optim

from lightning_deadunits.reinit.optimizers.adam_steps import StepCorrection
from lightning_deadunits.reinit.optimizers.state import reset_
from lightning_deadunits.reinit.weights import WeightSlice
from tests.reinit.optimizers.elementwise_adam import ElementwiseAdam

SHAPES = ((6, 4, 2, 2), (6,), (3, 6))

# When, and which slices by parameter; they overlap, and one comes back.
EVENTS = {
    20: {0: {0: [1, 4]}, 1: {0: [1, 4]}, 2: {1: [1, 4]}},
    35: {0: {1: [2]}},
    36: {0: {0: [3, 5], 1: [0, 1]}},
    60: {0: {0: [1]}, 1: {0: [1]}, 2: {1: [1]}},
}


class Problem:
    """Weights with gradients that depend on them, so that an error grows with every step."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.start = [self.rng.standard_normal(s) for s in SHAPES]

    def draw(self):
        """Coefficients of one step, a pair per array: gradient = a * tanh(w) + b."""
        return [(self.rng.standard_normal(s) ** 2, self.rng.standard_normal(s)) for s in SHAPES]

    @staticmethod
    def grads(weights, coefficients):
        return [a * np.tanh(w) + b for w, (a, b) in zip(weights, coefficients, strict=True)]


def torch_params(problem, **kwargs):
    return [torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for w in problem.start]


def set_grads(params, coefficients):
    for p, (a, b) in zip(params, coefficients, strict=True):
        p.grad = torch.from_numpy(a) * p.detach().tanh() + torch.from_numpy(b)


def revive(params, optimizer, event, values, *, correct=True):
    slices = [WeightSlice.along(params[i], where) for i, where in event.items()]
    for each in slices:
        each.write_(each.parameter, values)
    reset_([optimizer], slices)
    if correct:
        StepCorrection.of(optimizer).restart(optimizer, slices)


def revive_reference(reference, event, values):
    for i, where in event.items():
        mask = np.zeros(SHAPES[i], dtype=bool)
        mask[np.ix_(*[where.get(axis, range(n)) for axis, n in enumerate(SHAPES[i])])] = True
        reference.restart(i, mask, values)


def largest_error(params, reference):
    return max(
        np.abs(p.detach().numpy() - w).max() for p, w in zip(params, reference.weights, strict=True)
    )


def run(make, reference_options, *, steps=150, correct=True, between=None):
    """Step both side by side through the events; `between` edits a step's gradients in place."""
    problem = Problem()
    params, reference = torch_params(problem), ElementwiseAdam(problem.start, **reference_options)
    optimizer = make(params)
    for step in range(steps):
        if step in EVENTS:
            revive(params, optimizer, EVENTS[step], 0.1 + step / 100, correct=correct)
            revive_reference(reference, EVENTS[step], 0.1 + step / 100)
        coefficients = problem.draw()
        set_grads(params, coefficients)
        grads = problem.grads(reference.weights, coefficients)
        if between is not None:
            grads = between(step, params, optimizer, grads, reference)
        optimizer.step()
        reference.step(grads)
    return largest_error(params, reference), params, optimizer


KINDS = {
    "Adam": (optim.Adam, {}),
    "AdamW": (optim.AdamW, {"decoupled": True}),
    "RAdam": (optim.RAdam, {"kind": "RAdam"}),
    "Adamax": (optim.Adamax, {"kind": "Adamax"}),
}
PATHS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.01},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "other betas": {"betas": (0.5, 0.9), "eps": 1e-3},
    "no first moment": {"betas": (0.0, 0.99)},
}


def cases():
    for kind in KINDS:
        for path in PATHS:
            for option in OPTIONS:
                kin = kind in ("RAdam", "Adamax")
                if not (kin and (path == "fused" or option == "amsgrad")):
                    yield pytest.param(kind, path, option, id=f"{kind}-{path}-{option}")


@pytest.mark.parametrize(("kind", "path", "option"), list(cases()))
def test_revived_weights_move_as_under_an_elementwise_count(kind, path, option):
    make, kin_options = KINDS[kind]
    options = {"lr": 1e-2, **OPTIONS[option]}
    if kind == "AdamW":
        options.setdefault("weight_decay", 1e-2)
    error, *_ = run(lambda p: make(p, **options, **PATHS[path]), {**options, **kin_options})
    assert error < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_correction_they_do_not(kind):
    make, kin_options = KINDS[kind]
    options = {"lr": 1e-2, "weight_decay": 1e-2}
    error, *_ = run(lambda p: make(p, **options), {**options, **kin_options}, correct=False)
    assert error > 1e-3


def test_zeroed_moments_alone_move_a_weight_six_times_too_far():
    weight = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    optimizer = optim.Adam([weight], lr=1.0, eps=0.0)
    weight.grad = torch.ones_like(weight)
    for _ in range(10_000):
        optimizer.step()
    reset_([optimizer], [WeightSlice.along(weight, {0: [0]})])
    moves = []
    for _ in range(40):
        before = weight.detach().clone()
        optimizer.step()
        moves.append(float((before - weight.detach())[0]))
    assert max(moves) == pytest.approx(6.6, abs=0.1)


@pytest.mark.parametrize("path", PATHS)
def test_a_scheduler_that_moves_lr_and_betas_is_followed(path):
    def between(step, params, optimizer, grads, reference):
        if step == 0:
            schedulers.append(optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=151))
        else:
            schedulers[0].step()
        reference.lr, reference.betas = (
            optimizer.param_groups[0]["lr"],
            optimizer.param_groups[0]["betas"],
        )
        return grads

    schedulers = []
    error, *_ = run(
        lambda p: optim.AdamW(p, weight_decay=0.1, **PATHS[path]),
        {"decoupled": True, "weight_decay": 0.1},
        between=between,
    )
    assert error < 1e-12


def test_several_groups_have_their_own_options():
    def make(params):
        groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "lr": 0.02}]
        return optim.Adam(groups, lr=1.0)

    error, _, optimizer = run(make, {"lr": 0.02})
    assert error < 1e-12
    problem = Problem()
    params = torch_params(problem)
    optimizer = optim.Adam([{"params": params[:1], "lr": 0.1}, {"params": params[1:]}], lr=1e-3)
    first = ElementwiseAdam(problem.start, lr=0.1)
    rest = ElementwiseAdam(problem.start, lr=1e-3)
    for step in range(100):
        if step in EVENTS:
            revive(params, optimizer, EVENTS[step], 0.5)
            revive_reference(first, EVENTS[step], 0.5)
            revive_reference(rest, EVENTS[step], 0.5)
        coefficients = problem.draw()
        set_grads(params, coefficients)
        optimizer.step()
        first.step(problem.grads(first.weights, coefficients))
        rest.step(problem.grads(rest.weights, coefficients))
    rest.weights[0] = first.weights[0]
    assert largest_error(params, rest) < 1e-12


@pytest.mark.parametrize("path", ["for-loop", "fused"])
def test_lr_may_be_a_tensor(path):
    error, *_ = run(
        lambda p: optim.Adam(p, lr=torch.tensor(1e-2, dtype=torch.float64), **PATHS[path]),
        {"lr": 1e-2},
    )
    assert error < 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_a_parameter_without_gradient_is_left_alone(path):
    def between(step, params, optimizer, grads, reference):
        if step % 3 == 1:
            params[0].grad, grads[0] = None, None
        return grads

    error, *_ = run(lambda p: optim.Adam(p, lr=1e-2, **PATHS[path]), {"lr": 1e-2}, between=between)
    assert error < 1e-12


def test_clipped_gradients_change_nothing():
    def between(step, params, optimizer, grads, reference):
        torch.nn.utils.clip_grad_norm_(params, 0.5)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        return [g * min(1.0, 0.5 / (norm + 1e-6)) for g in grads]

    error, *_ = run(lambda p: optim.Adam(p, lr=1e-2), {"lr": 1e-2}, between=between)
    assert error < 1e-12


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("skipped", [range(40, 43), range(20, 23), range(2)], ids=str)
def test_a_step_that_amp_skips_is_no_step(path, skipped):
    problem = Problem()
    params, reference = torch_params(problem), ElementwiseAdam(problem.start)
    optimizer = optim.Adam(params, lr=1e-2, **PATHS[path])
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10_000)
    for step in range(120):
        if step in EVENTS:
            revive(params, optimizer, EVENTS[step], 0.3)
            revive_reference(reference, EVENTS[step], 0.3)
        coefficients = problem.draw()
        optimizer.zero_grad()
        loss = sum(
            (torch.from_numpy(a) * torch.log(torch.cosh(p)) + torch.from_numpy(b) * p).sum()
            for p, (a, b) in zip(params, coefficients, strict=True)
        )
        scaler.scale(loss).backward()
        if step in skipped:
            params[2].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update(1.0)
        if step not in skipped:
            reference.step(problem.grads(reference.weights, coefficients))
    assert largest_error(params, reference) < 1e-12


def test_backward_inside_the_closure_as_lightning_does():
    problem = Problem()
    params, reference = torch_params(problem), ElementwiseAdam(problem.start)
    optimizer = optim.AdamW(params, lr=1e-2, weight_decay=0.0)
    for step in range(100):
        if step in EVENTS:
            revive(params, optimizer, EVENTS[step], 0.3)
            revive_reference(reference, EVENTS[step], 0.3)
        coefficients = problem.draw()
        optimizer.step(lambda c=coefficients: set_grads(params, c))
        reference.step(problem.grads(reference.weights, coefficients))
    assert largest_error(params, reference) < 1e-12


def test_a_weight_revived_before_the_first_step_needs_no_correction():
    params = torch_params(Problem())
    optimizer = optim.Adam(params)
    revive(params, optimizer, EVENTS[20], 0.5)
    assert len(StepCorrection.of(optimizer).fresh) == 0
    assert not optimizer._optimizer_step_post_hooks


def test_weights_leave_once_the_correction_is_lost_in_rounding():
    def make(params):
        made.append(optim.Adam(params, lr=1e-2, betas=(0.8, 0.9)))
        return made[0]

    made = []
    error, _, optimizer = run(make, {"lr": 1e-2, "betas": (0.8, 0.9)}, steps=800)
    assert error < 1e-12
    assert len(StepCorrection.of(optimizer).fresh) == 0


def test_one_optimizer_has_one_correction():
    params = torch_params(Problem())
    optimizer, other = optim.Adam(params), optim.Adam(params)
    assert StepCorrection.of(optimizer) is StepCorrection.of(optimizer)
    assert StepCorrection.of(optimizer) is not StepCorrection.of(other)


def test_detaching_leaves_nothing_behind():
    _, _, optimizer = run(lambda p: optim.Adam(p), {}, steps=40)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    StepCorrection.of(optimizer).set(optimizer, {})
    assert not optimizer._optimizer_step_post_hooks
    assert len(StepCorrection.of(optimizer).fresh) == 0


def test_an_optimizer_that_goes_away_takes_its_correction_along():
    import gc
    import weakref

    _, _, optimizer = run(lambda p: optim.Adam(p), {}, steps=40)
    alive = weakref.ref(StepCorrection.of(optimizer))
    del optimizer
    gc.collect()
    assert alive() is None


NAMES = ["conv.weight", "conv.bias", "fc.weight"]


@pytest.mark.parametrize("stop", [20, 21, 36, 59, 61, 100])
@pytest.mark.parametrize("path", PATHS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(path, stop):
    def go_on(problem, params, optimizer, steps):
        for step in steps:
            if step in EVENTS:
                revive(params, optimizer, EVENTS[step], 0.3)
            set_grads(params, problem.draw())
            optimizer.step()

    problem = Problem()
    params = torch_params(problem)
    optimizer = optim.Adam(params, lr=1e-2, amsgrad=True, **PATHS[path])
    go_on(problem, params, optimizer, range(stop))
    file = io.BytesIO()
    torch.save(
        {
            "model": [p.detach() for p in params],
            "optimizer": optimizer.state_dict(),
            "correction": StepCorrection.of(optimizer).state_dict(
                dict(zip(params, NAMES, strict=True))
            ),
        },
        file,
    )
    go_on(problem, params, optimizer, range(stop, 150))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    problem = Problem()
    for _ in range(stop):
        problem.draw()
    resumed = [torch.nn.Parameter(p) for p in saved["model"]]
    again = optim.Adam(resumed, lr=1e-2, amsgrad=True, **PATHS[path])
    again.load_state_dict(saved["optimizer"])
    correction = StepCorrection.of(again)
    correction.load_state_dict(again, saved["correction"], dict(zip(NAMES, resumed, strict=True)))
    go_on(problem, resumed, again, range(stop, 150))
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))


def test_a_state_of_another_model_is_an_error():
    _, params, optimizer = run(lambda p: optim.Adam(p), {}, steps=40)
    correction = StepCorrection.of(optimizer)
    state = correction.state_dict(dict(zip(params, NAMES, strict=True)))
    with pytest.raises(ValueError, match="Expected `parameters` to hold every parameter"):
        correction.load_state_dict(optimizer, state, {"other": params[0]})


class MyAdamW(optim.AdamW):
    pass


class MyStep(optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


def test_a_subclass_is_corrected_if_it_steps_as_its_parent_does():
    for make, corrected in ((MyAdamW, True), (MyStep, False), (optim.NAdam, False)):
        _, params, optimizer = run(lambda p, make=make: make(p, lr=1e-2), {"lr": 1e-2}, steps=30)
        assert (StepCorrection.refusal(optimizer, params[0]) is None) == corrected
        assert (len(StepCorrection.of(optimizer).fresh) > 0) == corrected


def test_an_optimizer_without_bias_correction_needs_none():
    _, params, optimizer = run(lambda p: optim.RMSprop(p), {}, steps=30)
    assert StepCorrection.refusal(optimizer, params[0]) is None
    assert len(StepCorrection.of(optimizer).fresh) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_its_own_rounding_at_most(dtype):
    weight = torch.nn.Parameter(torch.full((2, 8), 1.0, dtype=dtype))
    optimizer = optim.Adam([weight], lr=1e-2, eps=1e-4)
    exact = ElementwiseAdam([np.full((2, 8), 1.0)], lr=1e-2, eps=1e-4)
    rng = np.random.default_rng(0)
    for step in range(60):
        if step == 30:
            rows = WeightSlice.along(weight, {0: [0]})
            rows.write_(weight, 1.0)
            reset_([optimizer], [rows])
            StepCorrection.of(optimizer).restart(optimizer, [rows])
            exact.weights[0][:] = weight.detach().double().numpy()
            exact.restart(0, np.array([True, False])[:, None] & np.ones((2, 8), bool), 1.0)
        grad = rng.standard_normal((2, 8))
        weight.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
        exact.step([weight.grad.double().numpy()])
    off = np.abs(weight.detach().double().numpy() - exact.weights[0])
    assert off[0].max() < 3 * max(off[1].max(), torch.finfo(dtype).eps)


def test_channels_last_parameters_are_corrected():
    def make(params):
        params[0].data = params[0].data.contiguous(memory_format=torch.channels_last)
        return optim.Adam(params, lr=1e-2)

    error, *_ = run(make, {"lr": 1e-2})
    assert error < 1e-12


def test_a_weight_is_held_once_however_often_it_is_revived():
    _, params, optimizer = run(lambda p: optim.Adam(p), {}, steps=70)
    state = StepCorrection.of(optimizer).state_dict(dict(zip(params, NAMES, strict=True)))
    for entry in state.values():
        assert entry["positions"].unique().numel() == entry["positions"].numel()
        assert entry["positions"].numel() == entry["event"].numel()


def test_an_optimizer_set_back_to_before_the_revival_steps_as_it_would_have():
    problem = Problem()
    params = torch_params(problem)
    optimizer = optim.Adam(params, lr=1e-2)
    for step in range(40):
        set_grads(params, problem.draw())
        optimizer.step()
        if step == 9:
            early = copy.deepcopy(optimizer.state_dict())
    revive(params, optimizer, EVENTS[20], 0.3)
    optimizer.load_state_dict(copy.deepcopy(early))
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    uncorrected = optim.Adam(plain, lr=1e-2)
    uncorrected.load_state_dict(copy.deepcopy(early))
    for _ in range(5):
        coefficients = problem.draw()
        for weights, each in ((params, optimizer), (plain, uncorrected)):
            set_grads(weights, coefficients)
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(params, plain, strict=True))


def test_a_step_skipped_right_after_resuming_is_no_step():
    _, params, optimizer = run(lambda p: optim.Adam(p), {}, steps=40)
    names = dict(zip(params, NAMES, strict=True))
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in params]
    again = optim.Adam(resumed)
    again.load_state_dict(optimizer.state_dict())
    state = StepCorrection.of(optimizer).state_dict(names)
    StepCorrection.of(again).load_state_dict(again, state, dict(zip(NAMES, resumed, strict=True)))
    again.step()  # no gradients
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))
