"""The memory of all optimizers of a model, as one: it forgets, comes back and is saved."""

import io

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import optim

from lightning_deadunits.reinit.optimizers.state import OptimizerMemory
from lightning_deadunits.reinit.weights import WeightSlice


def stepped(make, steps=5):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = make([weight])
    take_steps(weight, optimizer, steps)
    return weight, optimizer


def take_steps(weight, optimizer, steps):
    for _ in range(steps):
        weight.grad = torch.randn_like(weight)
        optimizer.step()


def test_several_optimizers_forget_together():
    (a, adam), (b, sgd) = stepped(optim.Adam), stepped(lambda p: optim.SGD(p, momentum=0.9))
    memory = OptimizerMemory([LightningOptimizer(adam), sgd])
    memory.forget_([WeightSlice.along(w, {0: [2]}) for w in (a, b)])
    assert bool((adam.state[a]["exp_avg"][2] == 0).all())
    assert bool((sgd.state[b]["momentum_buffer"][2] == 0).all())
    assert len(adam._optimizer_step_post_hooks) == 1
    assert not sgd._optimizer_step_post_hooks


def test_the_first_step_after_is_as_long_as_a_new_optimizers():
    weight, optimizer = stepped(lambda p: optim.Adam(p, lr=0.1), steps=1000)
    OptimizerMemory([optimizer]).forget_([WeightSlice.along(weight, {0: [2]})])
    before = weight.detach().clone()
    take_steps(weight, optimizer, 1)
    torch.testing.assert_close((weight - before)[2].abs(), torch.full((3,), 0.1))


def test_forgetting_twice_through_two_memories_corrects_once():
    weight, optimizer = stepped(lambda p: optim.Adam(p, lr=0.1), steps=1000)
    for _ in range(2):
        OptimizerMemory([optimizer]).forget_([WeightSlice.along(weight, {0: [2]})])
    before = weight.detach().clone()
    take_steps(weight, optimizer, 1)
    torch.testing.assert_close((weight - before)[2].abs(), torch.full((3,), 0.1))


def test_a_backup_of_the_tensors_restores_the_memory_bit_for_bit():
    weight, optimizer = stepped(lambda p: optim.Adam(p, amsgrad=True))
    memory, rows = OptimizerMemory([optimizer]), WeightSlice.along(weight, {0: [1]})
    before = {k: v.clone() for k, v in optimizer.state[weight].items()}
    moments = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
    backup = [(tensor, rows.read(tensor)) for tensor in moments]
    memory.forget_([rows])
    for tensor, values in backup:
        rows.write_(tensor, values)
    assert all(torch.equal(before[k], v) for k, v in optimizer.state[weight].items())


def test_reasons_come_from_whichever_optimizer_has_the_parameter():
    weight, adafactor = stepped(optim.Adafactor)
    other, nadam = stepped(optim.NAdam)
    memory = OptimizerMemory([nadam, adafactor])
    assert "row_var" in (memory.refusal(weight) or "")
    assert memory.refusal(other) is None
    assert "NAdam" in (memory.caveat(other) or "")
    assert memory.caveat(weight) is None


def test_no_optimizer_is_fine():
    memory = OptimizerMemory()
    weight = torch.nn.Parameter(torch.ones(2, 2))
    memory.forget_([WeightSlice.along(weight, {0: [0]})])
    assert memory.refusal(weight) is memory.caveat(weight) is None
    assert memory.state_dict({}) == []


def test_a_resumed_memory_goes_on_bit_for_bit():
    weight, optimizer = stepped(lambda p: optim.Adam(p, lr=0.1), steps=100)
    memory = OptimizerMemory([optimizer])
    memory.forget_([WeightSlice.along(weight, {0: [2]})])
    file = io.BytesIO()
    torch.save([memory.state_dict({weight: "w"}), optimizer.state_dict(), weight.detach()], file)
    torch.manual_seed(1)
    take_steps(weight, optimizer, 50)

    file.seek(0)
    saved, adam, value = torch.load(file, weights_only=True)
    again = torch.nn.Parameter(value)
    resumed = optim.Adam([again], lr=0.1)
    resumed.load_state_dict(adam)
    OptimizerMemory([resumed]).load_state_dict(saved, {"w": again})
    torch.manual_seed(1)
    take_steps(again, resumed, 50)
    assert torch.equal(weight, again)


def test_a_state_of_other_optimizers_is_an_error():
    with pytest.raises(ValueError, match="Expected `state` to have one entry for each of 0"):
        OptimizerMemory().load_state_dict([{}], {})


def test_detaching_removes_every_hook():
    weight, optimizer = stepped(optim.Adam)
    memory = OptimizerMemory([optimizer])
    memory.forget_([WeightSlice.along(weight, {0: [2]})])
    memory.detach()
    assert not optimizer._optimizer_step_post_hooks
