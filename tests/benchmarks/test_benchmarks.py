"""The benchmarks measure what they say; run with `pytest -o addopts= tests/benchmarks`."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.benchmarks.continual_learner import LEARNING_RATE, Networks, Policy, Training, learn
from tests.benchmarks.continual_policies import POLICIES, Callback, Scheduled
from tests.benchmarks.slowly_changing import PERIOD, stream


def test_runs_side_by_side_learn_as_torch_does_one_by_one():
    networks = Networks.drawn(np.random.default_rng(0), 3)
    module = networks.module(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    block = next(stream(range(3)))
    training = Training(networks, Policy())
    for i in range(500):
        x = torch.from_numpy(np.concatenate([block.slow, block.fast[i]])[:, 1].copy())
        training._step(np.concatenate([block.slow, block.fast[i]]), block.target[i])
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), torch.tensor([block.target[i, 1]])).backward()
        optimizer.step()
    for a, b in zip(module.parameters(), networks.module(1).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_network_survives_the_way_to_a_module_and_back():
    networks = Networks.drawn(np.random.default_rng(0), 3)
    before = networks.weight.copy()
    networks.load_(2, networks.module(2))
    assert np.array_equal(before, networks.weight)


def test_slow_inputs_stay_for_a_block_and_the_target_depends_on_the_inputs_alone():
    first, second = (block for block, _ in zip(stream(range(2)), range(2), strict=False))
    assert not np.array_equal(first.slow, second.slow)
    codes = (first.fast[:, :, 0] @ 2.0 ** np.arange(5)).astype(int)
    for code in range(32):
        assert np.unique(first.target[codes == code, 0]).size == 1
    assert len(first.target) == PERIOD


@pytest.mark.parametrize("policy", [Scheduled(10**9), Callback(10**9)], ids=["rules", "callback"])
def test_re_initialising_dead_units_does_not_change_what_was_computed(policy):
    networks = Networks.drawn(np.random.default_rng(0), 4)
    networks.bias[2] = -50.0
    block = next(stream(range(4)))
    training = Training(networks, policy)
    for i in range(100):
        inputs = np.concatenate([block.slow, block.fast[i]])
        training._activity += training._step(inputs, block.target[i])[0]
    before = [networks.module(run) for run in range(4)]
    training._ask(block, 99, np.zeros_like(networks.bias))
    assert policy.revived >= 4
    for run in range(4):
        x = torch.from_numpy(
            np.concatenate([np.tile(block.slow[:, run], (100, 1)), block.fast[:100, :, run]], 1)
        )
        # The last steps moved the weights: a unit that was dead in the window still is.
        torch.testing.assert_close(before[run](x), networks.module(run)(x))


@pytest.mark.parametrize(("every", "looks"), [(100, 200), (20_000, 1), (30_000, 0)])
def test_a_policy_is_asked_on_its_schedule_across_blocks(every, looks):
    class Counting(Scheduled):
        looked = 0

        def __call__(self, networks, window):
            self.looked += 1

    policy = Counting(every)
    learn(policy, runs=1, steps=20_000)
    assert policy.looked == looks


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs(name):
    assert np.isfinite(learn(POLICIES[name](), runs=2, steps=20_000)).all()
