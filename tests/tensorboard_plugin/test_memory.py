from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.data.provider import TensorDatum, TensorTimeSeries

from lightning_deadunits.tensorboard_plugin import memory as memory_module
from lightning_deadunits.tensorboard_plugin.memory import Memory
from lightning_deadunits.tensorboard_plugin.metadata import TagMetadata, encode
from lightning_deadunits.tensorboard_plugin.source import Source


class Provider:
    """A data provider that counts its reads."""

    def __init__(self, layers: dict[str, list[float]]) -> None:
        self.layers, self.reads = layers, 0

    def list_runs(self, ctx, experiment_id):
        return [SimpleNamespace(run_name="run", start_time=0.0)]

    def list_tensors(self, ctx, *, experiment_id, plugin_name, run_tag_filter):
        content = encode(TagMetadata("zero_rate"))
        tags = {
            f"dead_units/{name}": TensorTimeSeries(
                max_step=len(rates),
                max_wall_time=float(len(rates)),
                plugin_content=content,
                description="",
                display_name="",
            )
            for name, rates in self.layers.items()
        }
        return {"run": tags}

    def read_tensors(self, ctx, *, experiment_id, plugin_name, downsample, run_tag_filter):
        self.reads += 1
        tags = {tag: self.layers[tag.removeprefix("dead_units/")] for tag in run_tag_filter.tags}
        return {
            "run": {
                tag: [
                    TensorDatum(step=at, wall_time=float(at), numpy=np.full(4, rate, np.float32))
                    for at, rate in enumerate(rates)
                ][-downsample:]
                for tag, rates in tags.items()
            }
        }


@pytest.fixture
def provider():
    return Provider({"a": [0.1, 1.0], "b": [0.5]})


def read(memory: Memory, provider: Provider) -> dict:
    source = Source(provider, None, "", 1000)
    return memory.read(source, "run", source.layers("run").values())


def test_what_has_not_changed_is_not_read_again(provider):
    memory = Memory()
    first = read(memory, provider)
    reads = provider.reads
    assert read(memory, provider) == first
    assert provider.reads == reads


def test_what_was_written_since_is_read(provider):
    memory = Memory()
    read(memory, provider)
    provider.layers["a"].append(0.3)
    record = read(memory, provider)["a"]
    assert record.history.rates.steps.tolist() == [0, 1, 2]


def test_the_oldest_is_forgotten_when_there_is_too_much(provider, monkeypatch):
    monkeypatch.setattr(memory_module, "MEMORY_BUDGET", 50)  # a: 8 cells, b: 4 cells, of 6 bytes
    memory = Memory()
    assert set(read(memory, provider)) == {"a", "b"}
    assert [key[-1] for key in memory._kept] == ["b"]
