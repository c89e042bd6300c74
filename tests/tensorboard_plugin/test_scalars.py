"""The run's own loss and learning rate, the total of the dead, and what the callback said."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin.scalars import guess
from lightning_deadunits.tensorboard_plugin.verdict import write_verdict
from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates

from .serving import ROUTE, client, unpack

NAN = float("nan")


@pytest.mark.parametrize(
    ("tags", "loss", "learning_rate"),
    [
        (["train_loss", "val_loss", "lr-Adam"], "train_loss", "lr-Adam"),
        (["val/loss", "train/loss", "train/lr"], "train/loss", "train/lr"),
        (["loss/val", "loss"], "loss", None),
        (["train_loss_epoch", "train_loss_step"], "train_loss_step", None),
        (["val_loss"], "val_loss", None),
        (["lr-SGD-momentum", "lr-SGD/pg1", "lr-SGD/pg2"], None, "lr-SGD/pg1"),
        (["learning_rate", "color", "recall", "lr-Adam-weight_decay"], None, "learning_rate"),
        (["cross_entropy", "accuracy"], "cross_entropy", None),
        (["dead_fraction/loss.relu", "zero_rate/lr.relu", "reinit/loss.relu"], None, None),
        ([], None, None),
    ],
)
def test_loss_and_learning_rate_are_found_by_name(tags, loss, learning_rate):
    assert guess(tags, "loss") == loss
    assert guess(tags, "learning_rate") == learning_rate


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("scalars")
    writer = SummaryWriter(str(logdir / "run"))
    for step in range(6):
        writer.add_scalar("train_loss", 2.0 - step / 4, step)
        writer.add_scalar("val_loss", NAN if step == 3 else 3.0, step)
        writer.add_scalar("lr-SGD", 0.1, step)
    for step, first, second in [(2, [1, 0.5], [1, 1, 1]), (4, [1, 1], [NAN] * 3)]:
        write_zero_rates(writer, "zebra", np.array(first), step, dead_threshold=1.0)
        names = ("up", "down")
        write_zero_rates(writer, "apple", np.array(second), step, dead_threshold=1.0, made_by=names)
    write_reinit(writer, "zebra", [0], 2, 2)
    write_reinit(writer, "apple", [0, 2], 3, 2)
    writer.close()
    SummaryWriter(str(logdir / "silent")).close()
    writer = SummaryWriter(str(logdir / "silent"))
    write_zero_rates(writer, "a", np.ones(2), 1, dead_threshold=1.0)
    writer.close()
    return client(logdir)


def timeline(served, **query: str) -> dict:
    return served.get(f"{ROUTE}/timeline", query_string=query).json


def layers(served, run: str) -> list[dict]:
    return served.get(f"{ROUTE}/overview", query_string={"run": run}).json["layers"]


def test_a_timeline_holds_the_runs_own_scalars(served):
    answer = timeline(served, run="run")
    assert answer["tags"] == ["lr-SGD", "train_loss", "val_loss"]
    assert answer["loss"] == {
        "tag": "train_loss",
        "steps": [0, 1, 2, 3, 4, 5],
        "values": [2.0, 1.75, 1.5, 1.25, 1.0, 0.75],
    }
    assert answer["learning_rate"]["tag"] == "lr-SGD"


def test_the_user_chooses_the_tag_and_what_is_not_finite_is_null(served):
    answer = timeline(served, run="run", loss="val_loss", learning_rate="nothing")
    assert answer["loss"]["tag"] == "val_loss"
    assert answer["loss"]["values"] == [3.0, 3.0, 3.0, None, 3.0, 3.0]
    assert answer["learning_rate"]["tag"] == "lr-SGD"


def test_a_run_without_scalars_has_a_timeline_all_the_same(served):
    answer = timeline(served, run="silent")
    assert (answer["tags"], answer["loss"], answer["learning_rate"]) == ([], None, None)
    assert answer["total"] == {"steps": [1], "dead": [2], "units": [2]}
    assert answer["diagnosis"] is None


def test_the_total_adds_up_what_was_seen_at_each_step(served):
    answer = timeline(served, run="run")
    # At step 4 the layer of three units saw nothing: it is not a layer without dead units.
    assert answer["total"] == {"steps": [2, 4], "dead": [4, 2], "units": [5, 2]}
    assert answer["reinitialisations"] == [{"step": 2, "units": 3}]


def test_layers_come_in_the_order_in_which_they_ran(served):
    assert [row["layer"] for row in layers(served, "run")] == ["zebra", "apple"]


def test_a_layer_tells_what_makes_its_units(served):
    assert [row["made_by"] for row in layers(served, "run")] == [[], ["up", "down"]]
    header, _ = unpack(
        served.get(f"{ROUTE}/layer", query_string={"run": "run", "layer": "apple"}).data
    )
    assert header["made_by"] == ["up", "down"]


def test_windows_of_training_batches_beside_a_validation_are_in_no_sum(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for name, step in [("a", 5), ("train/a", 4), ("train/a", 5)]:
        write_zero_rates(writer, name, np.array([1, 0.5]), step, dead_threshold=1.0)
    for name in ("a", "train/a"):
        write_reinit(writer, name, [0], 2, 5)
    writer.close()
    served = client(tmp_path)
    answer = timeline(served, run=".")
    assert answer["total"] == {"steps": [5], "dead": [1], "units": [2]}
    assert answer["reinitialisations"] == [{"step": 5, "units": 1}]
    assert {row["layer"]: row["beside"] for row in layers(served, ".")} == {
        "a": False,
        "train/a": True,
    }


def verdict(step: int, **layer: object) -> dict:
    return {
        "version": 1,
        "step": step,
        "diagnosis": "Died together: look at the learning rate.",
        "layers": {"last.by.name": {}, "a": {"num_dead": 1, "dead_fraction": 0.5, **layer}},
    }


def test_where_a_verdict_speaks_of_the_latest_step_its_figures_and_words_are_shown(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for layer in ("a", "last.by.name"):
        write_zero_rates(writer, layer, np.array([1, 0.25]), 7, dead_threshold=1.0)
    said = {"zero_rate": 0.6251, "dead_since": "1 born dead", "made_by": ["fc"]}
    write_verdict(writer, verdict(5), 5)
    write_verdict(writer, verdict(7, **said), 7)
    writer.close()
    served = client(tmp_path)
    rows = {row["layer"]: row for row in layers(served, ".")}
    assert list(rows) == ["last.by.name", "a"]  # the verdict's order, not that of the rates
    assert {key: rows["a"][key] for key in said} == said
    assert timeline(served, run=".")["diagnosis"] == "Died together: look at the learning rate."


def test_a_verdict_of_another_step_lends_no_figures(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    write_zero_rates(writer, "a", np.array([1, 0.25]), 7, dead_threshold=1.0)
    write_verdict(writer, verdict(5, zero_rate=0.1, dead_since="wrong", made_by=["fc"]), 5)
    writer.close()
    (row,) = layers(client(tmp_path), ".")
    assert row["zero_rate"] == 0.625
    assert row["dead_since"] is None


@pytest.mark.parametrize("content", [b"not JSON", b"[]", b'{"layers": 3}', b"\xff"])
def test_a_verdict_that_cannot_be_read_costs_nothing(tmp_path, content, monkeypatch):
    monkeypatch.setattr("json.dumps", lambda *_, **__: content.decode("latin-1"))
    writer = SummaryWriter(str(tmp_path))
    write_verdict(writer, {}, 7)
    monkeypatch.undo()
    write_zero_rates(writer, "a", np.array([1, 0.25]), 7, dead_threshold=1.0)
    writer.close()
    assert [row["dead"] for row in layers(client(tmp_path), ".")] == [1]


def test_maps_side_by_side_have_the_same_unit_in_the_same_row(tmp_path):
    for run, rates in {"one": [[0.1, 1, 0.2]], "other": [[1, 0.3, 0.5, 0.4]]}.items():
        writer = SummaryWriter(str(tmp_path / run))
        write_zero_rates(writer, "a", np.array(rates[0]), 1, dead_threshold=1.0)
        writer.close()
    served = client(tmp_path)

    def units(**query: str) -> list[int]:
        response = served.get(f"{ROUTE}/layer", query_string={"layer": "a", **query})
        return unpack(response.data)[1]["units"].tolist()

    assert units(run="one") == [1, 2, 0]
    assert units(run="other") == [0, 2, 3, 1]
    assert units(run="other", like="one") == [1, 2, 0, 3]
    assert units(run="one", like="other") == [0, 2, 1]
    assert units(run="one", like="other", order="index") == [0, 1, 2]
