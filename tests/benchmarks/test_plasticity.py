"""The rules do what their papers say, on examples small enough to work out by hand.

Run with ``pytest -o addopts= tests/benchmarks/test_plasticity.py``.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_deadunits import reinit_dead_units
from tests.benchmarks.plasticity import control
from tests.benchmarks.plasticity.networks import Learner, Networks, Optimizer, Steps
from tests.benchmarks.plasticity.problems import PROBLEMS, Problem, Task, digits
from tests.benchmarks.plasticity.rules import Rule, improbable, made
from tests.benchmarks.plasticity.training import judged, learn
from tests.benchmarks.plasticity.tuning import ALL, Job, jobs, run, settings, tuned

SIZES = (6, 5, 4, 3)


def learner(
    lanes: int = 2,
    *,
    sizes: tuple[int, ...] = SIZES,
    adam: bool = False,
    steps: Steps = "kept",
    layer_norm: bool = False,
) -> Learner:
    networks = Networks(sizes, list(range(lanes)), layer_norm)
    optimizer = Optimizer(networks, torch.full((lanes,), 0.01), adam, steps)
    return Learner(networks, optimizer, torch.Generator().manual_seed(0))


def module_of(networks: Networks, lane: int) -> nn.Sequential:
    """Copy one lane into modules."""
    layers: list[nn.Module] = []
    for layer, (weight, bias) in enumerate(
        zip(networks.own.weights, networks.own.biases, strict=True)
    ):
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.load_state_dict({"weight": weight[lane], "bias": bias[lane, 0]})
        layers.append(linear)
        if layer in networks.hidden:
            if networks.layer_norm:
                norm = nn.LayerNorm(weight.shape[1])
                scale, shift = networks.own.scales[layer], networks.own.shifts[layer]
                norm.load_state_dict({"weight": scale[lane, 0], "bias": shift[lane, 0]})
                layers.append(norm)
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def passed(one: Learner, batch: int = 7) -> Tensor:
    """Pass random inputs forth and back; return them."""
    inputs = torch.randn(one.networks.lanes, batch, one.networks.sizes[0])
    outputs = one.predict(inputs)
    one.networks.backward(torch.randn_like(outputs))
    return inputs


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_gradients_are_those_of_autograd(layer_norm: bool, batch: int) -> None:
    torch.manual_seed(0)
    one = learner(layer_norm=layer_norm)
    one.networks.rows += torch.randn_like(one.networks.rows) * 0.3
    inputs = torch.randn(2, batch, 6)
    back = torch.randn(2, batch, 3)
    outputs = one.predict(inputs)
    one.networks.backward(back)
    for lane in range(2):
        module = module_of(one.networks, lane)
        expected = module(inputs[lane])
        torch.testing.assert_close(outputs[lane], expected)
        expected.backward(back[lane])
        wanted = flat([parameter.grad for parameter in module.parameters()])
        torch.testing.assert_close(one.networks.gradients[lane], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("steps", ["kept", "unit", "tensor"])
def test_steps_are_those_of_torch(adam: bool, steps: Steps) -> None:
    torch.manual_seed(0)
    one = learner(adam=adam, steps=steps)
    rows = one.networks.rows.clone().requires_grad_()
    theirs = (torch.optim.Adam if adam else torch.optim.SGD)([rows], lr=0.01)
    for _ in range(20):
        gradients = torch.randn_like(rows)
        one.networks.gradients.copy_(gradients)
        rows.grad = gradients
        one.optimizer.step()
        theirs.step()
    torch.testing.assert_close(one.networks.rows, rows.detach(), rtol=1e-4, atol=1e-6)


def test_fresh_weights_take_their_steps_as_under_a_fresh_adam() -> None:
    torch.manual_seed(0)
    one = learner(1, adam=True, steps="unit")
    for _ in range(50):
        passed(one)
        one.optimizer.step()
    chosen = torch.tensor([[False, True, False, False, False]])
    one.reinit_(0, chosen)
    weight = one.networks.own.weights[0]
    fresh = weight[0, 1].clone().requires_grad_()
    theirs = torch.optim.Adam([fresh], lr=0.01)
    for _ in range(5):
        passed(one)
        fresh.grad = one.networks.gradient.weights[0][0, 1].clone()
        one.optimizer.step()
        theirs.step()
    torch.testing.assert_close(weight[0, 1], fresh.detach())


def test_a_lane_learns_alone_what_it_learns_in_company() -> None:
    problem = PROBLEMS["online permuted digits"]
    rates = torch.tensor([0.1, 0.1, 0.3, 0.3])
    together = learn(problem, made("ours", {"every": [20] * 4}), [0, 1], rates, False, 2)
    alone = learn(problem, made("nothing", {}), [1], rates[:1], False, 1)
    torch.testing.assert_close(together[0, 1], alone[0, 0], rtol=0, atol=0.01)
    assert not torch.equal(together[:, 1], together[:, 3])


def test_ours_does_what_reinit_dead_units_does() -> None:
    torch.manual_seed(0)
    one = learner(1, adam=True, steps="unit")
    one.networks.own.biases[0][0, 0, 2] = -100.0
    inputs = passed(one, batch=8)
    one.optimizer.step()
    one.predict(inputs)
    module = module_of(one.networks, 0)
    before = module(inputs[0])
    done = reinit_dead_units(module, {"1": [2]}, inputs[0], optimizers=[])
    assert done.reinitialised == {"1": [2]}
    dead = one.networks.activations(0).sum(1) == 0
    assert dead.nonzero().tolist() == [[0, 2]]
    assert one.reinit_(0, dead, centred=True) == 1
    # Both silence what reads the unit, and leave the outputs as they were.
    outgoing = one.networks.own.weights[1][0, :, 2]
    assert torch.equal(outgoing, module[2].weight[:, 2])
    torch.testing.assert_close(one.networks.forward(inputs)[0], before)
    fires = one.networks.activations(0)[0, :, 2] > 0
    assert int(fires.sum()) == int((module[:2](inputs[0])[:, 2] > 0).sum()) == 4
    # Given the same fresh weights, both set the same bias.
    fresh = module[0].weight[2:3].detach()
    bias = one._biases(0, torch.tensor([0]), fresh)
    torch.testing.assert_close(bias, module[0].bias[2:3].detach())


def acted(name: str, one: Learner, activity: list[list[float]], **setting: float) -> Rule:
    """Let a rule act once after a pass in which the first layer's units gave this."""
    lanes = one.networks.lanes
    rule = made(name, {key: [value] * lanes for key, value in setting.items()})
    rule.begin(one)
    passed(one)
    one.networks.inputs[1] = torch.tensor(activity)[:, None]
    one.networks.inputs[2] = torch.ones(lanes, 1, one.networks.sizes[2])
    rule.act(one, 1)
    return rule


def changed(one: Learner, before: Tensor) -> list[list[int]]:
    """Return which units of the first layer have new incoming weights, lane by lane."""
    weights = one.networks._views(before).weights[0]
    return [
        (row.nonzero().flatten().tolist())
        for row in (weights != one.networks.own.weights[0]).any(-1)
    ]


@pytest.mark.parametrize(
    ("rule", "setting", "units"),
    [
        ("ours", {}, [1]),
        # The mean is 2: at most 0.2 is dormant.
        ("ReDo", {"tau": 0.1}, [1, 2]),
        ("ours, dormant", {"tau": 0.1}, [1, 2]),
        ("ReDo", {"tau": 0.05}, [1]),
    ],
)
def test_a_rule_resets_the_units_that_its_paper_names(
    rule: str, setting: dict[str, float], units: list[int]
) -> None:
    one = learner(1)
    before = one.networks.rows.clone()
    acted(rule, one, [[4.0, 0.0, 0.2, 2.8, 3.0]], every=1, **setting)
    assert changed(one, before) == [units]
    assert torch.equal(one.networks.own.weights[1][0, :, units], torch.zeros(4, len(units)))


def test_random_units_are_as_many_as_ours() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        one = learner(4)
        before = one.networks.rows.clone()
        silent = [[1.0, 0.0, 0.0, 1.0, 1.0], [1.0] * 5]
        rule = acted("random units", one, [*silent, [1.0] * 5, [0.0] * 5], every=1)
        first, second, third, fourth = changed(one, before)
        assert (first, second, fourth) == ([1, 2], [], [])
        assert len(third) == 2
        assert rule.resets.tolist() == [2, 0, 2, 0]


def test_regrama_resets_units_of_small_gradients_and_keeps_their_outgoing_weights() -> None:
    one = learner(1, adam=True, steps="tensor")
    rule = made("ReGraMa", {"every": [1], "tau": [0.1]})
    rule.begin(one)
    passed(one)
    gradient = one.networks.gradient.weights
    gradient[0].fill_(1.0)
    gradient[0][0, 3] = 0.05
    gradient[1].fill_(1.0)
    before, rows = one.networks.own.weights[1].clone(), one.networks.rows.clone()
    rule.act(one, 1)
    assert changed(one, rows) == [[3]]
    assert torch.equal(one.networks.own.weights[1], before)


def test_l2_init_adds_the_gradient_of_its_penalty() -> None:
    one = learner(1)
    rule = made("L2-Init", {"strength": [0.5]})
    rule.begin(one)
    one.networks.rows += 3.0
    one.networks.gradients.fill_(1.0)
    rule.adjust(one)
    # The derivative of 0.5 * 3^2 is 3.
    torch.testing.assert_close(one.networks.gradients, torch.full_like(one.networks.rows, 4.0))


def test_layer_norm_gives_normalised_values_to_relu() -> None:
    assert made("layer norm", {}).layer_norm
    one = learner(1, layer_norm=True)
    one.predict(torch.randn(1, 9, 6))
    normed = one.networks._normed[0][0]
    torch.testing.assert_close(normed.mean(-1), torch.zeros(1, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std(-1, correction=0), torch.ones(1, 9), atol=1e-3, rtol=0)


def test_a_silence_is_improbable_by_the_geometric_tail_of_its_own_history() -> None:
    # 49 firings in 95 steps, one in 5 as prior: a rate of 0.5, and 0.5^10 is just below 0.001.
    age, fired, log_eta, floor = torch.tensor([95.0, 49.0, math.log(1e-3), 5.0])
    silences = torch.tensor([9.0, 10.0])
    assert improbable(age + silences, fired, silences, log_eta, floor).tolist() == [False, True]
    assert not improbable(age + silences, fired, silences, log_eta, floor * 3).any()


def test_self_normalized_resets_wait_longer_for_units_that_fire_rarely() -> None:
    one = learner(1, sizes=(6, 2, 3))
    rule = made("Self-Normalized Resets", {"eta": [1e-3], "floor": [10]})
    rule.begin(one)
    passed(one)
    reset_at: dict[int, int] = {}
    for step in range(1, 2001):
        # One fires always, one at every twentieth step; both fall silent at step 1000.
        fires = [float(step <= 1000), float(step <= 1000 and step % 20 == 0)]
        one.networks.inputs[1] = torch.tensor([[fires]])
        before = one.networks.own.weights[0].clone()
        rule.act(one, step)
        fresh = (one.networks.own.weights[0] != before)[0].any(-1)
        for unit in fresh.nonzero().flatten().tolist():
            reset_at.setdefault(unit, step)
    # The rates are 0.99 and 51 / 1010; log(0.001) / log(1 - 51 / 1010) is 133.3. Every 5 steps the
    # rule looks, and both fired last at step 1000.
    assert reset_at == {0: 1010, 1: 1135}


def test_continual_backprop_replaces_the_mature_unit_of_least_utility() -> None:
    one = learner(1, sizes=(2, 3, 1))
    own = one.networks.own
    own.weights[0].copy_(torch.tensor([[[1.0, 1.0], [1.0, 1.0], [4.0, 4.0]]]))
    own.weights[1].copy_(torch.tensor([[[1.0, 0.4, 1.0]]]))
    rule = made("continual backprop", {"rate": [0.125], "maturity": [3]})
    rule.begin(one)
    passed(one)
    before = one.networks.rows.clone()
    offset = float(own.biases[1])
    # All deviate alike. Contribution over ease: 1, 0.4 and 1 / 4, so the third goes; three units
    # of which an eighth is due per step are one after three steps, from the fourth on.
    for step in range(1, 7):
        value = float(step % 2)
        one.networks.inputs[1] = torch.full((1, 1, 3), value)
        rule.act(one, step)
        assert changed(one, before) == [[2]] if step == 6 else [[]]
    assert float(own.weights[1][0, 0, 2]) == 0.0
    # Its mean activation, corrected for the start, times its outgoing weight of 1.
    weights = [0.99 ** (6 - s) for s in range(1, 7)]
    mean = sum(w * (s % 2) for w, s in zip(weights, range(1, 7), strict=True)) / sum(weights)
    assert float(own.biases[1]) - offset == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_the_same_for_a_seed_whatever_its_company(name: str) -> None:
    def first(seeds: list[int]) -> list[Task]:
        return list(itertools.islice(PROBLEMS[name].stream(seeds), 2))

    for alone, company in zip(first([4]), first([3, 4]), strict=True):
        assert alone.inputs.shape[:2] == (PROBLEMS[name].steps, 1)
        assert torch.equal(alone.inputs[:, 0], company.inputs[:, 1])
        assert torch.equal(alone.targets[:, 0], company.targets[:, 1])


def test_permuted_digits_see_every_image_once_in_an_order_of_pixels_of_their_own() -> None:
    tasks = list(itertools.islice(PROBLEMS["online permuted digits"].stream([0]), 2))
    images = digits()[0]
    for task in tasks:
        seen = task.inputs.flatten(0, 2).sort(1).values
        assert len(seen.unique(dim=0)) == len(images[: len(seen)].sort(1).values.unique(dim=0))
    assert not torch.equal(tasks[0].inputs.mean((0, 1, 2)), tasks[1].inputs.mean((0, 1, 2)))


def test_classes_arrive_two_at_a_time() -> None:
    tasks = list(itertools.islice(PROBLEMS["class-incremental digits"].stream([0]), 6))
    assert [len(task.targets.unique()) for task in tasks] == [2, 4, 6, 8, 10, 2]
    for task in tasks:
        assert task.held_out is not None
        assert set(task.held_out[1].unique().tolist()) - {-1} == set(task.targets.unique().tolist())


@pytest.mark.parametrize("name", ["online permuted digits", "slowly-changing regression"])
def test_the_gradient_at_the_outputs_is_that_of_the_loss(name: str) -> None:
    torch.manual_seed(0)
    problem: Problem = PROBLEMS[name]
    outputs = torch.randn(2, 5, 3 if problem.loss == "classes" else 1, requires_grad=True)
    if problem.loss == "classes":
        targets = torch.randint(0, 3, (2, 5))
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    else:
        targets = torch.randn(2, 5, 1)
        loss = nn.functional.mse_loss(outputs, targets)
    (2 * loss).backward()
    gradient, _ = judged(problem, outputs.detach(), targets)
    torch.testing.assert_close(gradient, outputs.grad)


def test_the_gradient_of_the_actor_critic_is_that_of_its_loss() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(1, 6, 3, requires_grad=True)
    actions, wanted = torch.randint(0, 2, (1, 6)).float(), torch.randn(1, 6)
    chance = torch.distributions.Categorical(logits=outputs[..., :2])
    advantage = (wanted - outputs[..., 2]).detach()
    policy = -advantage * chance.log_prob(actions) - control.ENTROPY * chance.entropy()
    value = control.VALUE * (outputs[..., 2] - wanted).square()
    (policy + value).mean().backward()
    gradient = control.gradient(outputs.detach(), actions, wanted)
    torch.testing.assert_close(gradient, outputs.grad)


def test_returns_end_at_a_fall_and_go_on_by_value_at_a_break() -> None:
    fell = torch.tensor([[[0.0], [1.0], [0.0], [0.0]]])
    broke = torch.tensor([[[False], [True], [True], [False]]])
    values = torch.tensor([[[9.0], [9.0], [0.5], [2.0]]])
    found = control.returns(fell, broke, values).flatten().tolist()
    assert found == pytest.approx([-0.97, -1.0, 0.97 * 0.5, 0.97 * 2.0])


def test_poles_fall_as_in_the_equations_of_motion() -> None:
    # Upright and at rest, pushed right: the cart goes right, the pole falls left.
    state = control.moved(torch.zeros(1, 4), torch.ones(1), torch.full((1,), 0.5))
    pushed = 10 / 1.1
    falling = -pushed / (0.5 * (4 / 3 - 0.1 / 1.1))
    speed = 0.02 * (pushed - 0.05 * falling / 1.1)
    wanted = torch.tensor([[0.0, speed, 0.0, 0.02 * falling]])
    torch.testing.assert_close(state, wanted)


def test_every_rule_has_nine_settings_and_its_own_among_them() -> None:
    for job in jobs(seeds=1):
        assert len({json.dumps(setting) for setting in settings(job)}) == 9


@pytest.mark.parametrize("problem", ALL)
def test_a_job_writes_all_that_the_table_needs(problem: str) -> None:
    result = tuned(Job(problem, "SGD", "random units", seeds=2, share=0.01))
    assert len(result["final"]) == len(result["resets"]) == 2
    assert len(result["curve"]) == result["tasks"] == 2
    assert result["setting"] in result["tuning"]["settings"]
    assert json.loads(json.dumps(result)) == result


def test_the_lanes_of_ours_beside_random_units_are_those_of_ours(tmp_path: Path) -> None:
    job = Job("online permuted digits", "SGD", "ours", seeds=2)
    setting = [{"rate": 0.3, "every": 20.0}]
    ours = run(job, setting, [0, 1], 3)
    drawn = run(Job("online permuted digits", "SGD", "random units", 2), setting, [0, 1], 3)
    # The fresh weights come from one generator per job, so only what precedes them is equal.
    torch.testing.assert_close(ours.scores[0], drawn.scores[0], atol=0.05, rtol=0)
    assert int(drawn.resets.sum()) > 0
