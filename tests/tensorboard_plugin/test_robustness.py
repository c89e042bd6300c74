"""Whatever breaks, TensorBoard and its other tabs go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from torch.utils.tensorboard import SummaryWriter

from lightning_deadunits.tensorboard_plugin import DeadUnitsPlugin, metadata, writing
from lightning_deadunits.tensorboard_plugin.writing import write_reinit, write_zero_rates

from .serving import ROUTE, client, get, tensorboard, wait_until
from .synthetic import rates, write_run
from .test_loaders import LOADERS

GOOD = rates(3, 8)


def run_python(code: str, env: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sabotaged(folder: Path, *modules: str) -> dict[str, str]:
    """An environment in which importing some modules fails, as with a broken installation."""
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import sys

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name in {modules!r}:
                    raise ImportError(f"cannot load {{name}}: undefined symbol <b>_ZN</b>")

        sys.meta_path.insert(0, Broken())
        """)
    )
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def overview(served, run: str) -> dict:
    response = served.get(f"{ROUTE}/overview", query_string={"run": run})
    return {it["layer"]: it for it in response.json["layers"]}


def test_the_plugin_loads_neither_torch_nor_lightning():
    loaded = run_python("""
        import sys
        from types import SimpleNamespace
        from lightning_deadunits.tensorboard_plugin import DeadUnitsPlugin
        context = SimpleNamespace(data_provider=None, sampling_hints=None)
        tab = DeadUnitsPlugin().load(context)
        assert type(tab).__name__ == "DeadUnitsTab", tab
        tab.get_plugin_apps()
        heavy = {"torch", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert loaded.strip() == "[]"


def test_nothing_of_the_rest_of_the_package_is_imported():
    loaded = run_python("""
        import sys
        from lightning_deadunits.tensorboard_plugin import DeadUnitsPlugin, tab, writing
        ours = [name for name in sys.modules if name.startswith("lightning_deadunits.")]
        print([name for name in ours if "tensorboard_plugin" not in name])
    """)
    assert loaded.strip() == "[]"


def test_importing_the_entry_point_needs_not_even_numpy(tmp_path):
    broken = run_python(
        """
        from lightning_deadunits.tensorboard_plugin import DeadUnitsPlugin
        tab = DeadUnitsPlugin().load(None)
        (app,) = tab.get_plugin_apps().values()
        print(b"".join(app({}, lambda status, headers: None)).decode())
        """,
        sabotaged(tmp_path, "numpy"),
    )
    assert "cannot load numpy" in broken


def test_a_broken_torch_and_lightning_do_not_matter(tmp_path):
    write_run(tmp_path / "logs", {"a": GOOD})
    with tensorboard(tmp_path / "logs", env=sabotaged(tmp_path, "torch", "lightning")) as url:
        wait_until(lambda: json.loads(get(f"{url}{ROUTE}/runs"))["runs"])
        assert json.loads(get(f"{url}{ROUTE}/overview?run=."))["layers"][0]["num_units"] == 8


def test_a_tab_that_cannot_load_says_why_and_leaves_the_others_alone(tmp_path):
    write_run(tmp_path / "logs", {"a": GOOD})
    SummaryWriter(str(tmp_path / "logs")).add_scalar("loss", 1.0)
    env = sabotaged(tmp_path, "lightning_deadunits.tensorboard_plugin.routes")
    with tensorboard(tmp_path / "logs", env=env) as url:

        def listing():
            tabs = json.loads(get(f"{url}/data/plugins_listing"))
            return tabs if tabs["dead_units"]["enabled"] and tabs["scalars"]["enabled"] else None

        assert wait_until(listing)["dead_units"]["tab_name"] == "Dead Units"
        assert b"undefined symbol" in get(f"{url}{ROUTE}/static/index.js")
        assert get(f"{url}/data/plugin/scalars/tags")


@pytest.mark.parametrize("loader", LOADERS.values())
def test_a_corrupt_event_file_costs_only_what_follows_the_damage(tmp_path, loader):
    write_run(tmp_path / "good", {"a": GOOD})
    write_run(tmp_path / "cut", {"a": GOOD})
    write_run(tmp_path / "flipped", {"a": rates(40, 8)})
    (cut,) = (tmp_path / "cut").iterdir()
    cut.write_bytes(cut.read_bytes()[:-5])
    (flipped,) = (tmp_path / "flipped").iterdir()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    flipped.write_bytes(content)
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "events.out.tfevents.1.noise").write_bytes(b"no event file" * 50)
    with tensorboard(tmp_path, loader, "--reload_interval=1") as url:

        def steps(run: str) -> int:
            layers = json.loads(get(f"{url}{ROUTE}/overview?run={run}"))["layers"]
            return layers[0]["num_steps"] if layers else 0

        expected = {"good", "cut", "flipped"}
        listed = lambda: {it["run"] for it in json.loads(get(f"{url}{ROUTE}/runs"))["runs"]}  # noqa: E731
        wait_until(lambda: expected <= listed() and all(steps(run) for run in expected))
        wait_until(lambda: steps("good") == 3)
        assert steps("cut") == 2
        assert 0 < steps("flipped") < 40


def test_an_unknown_schema_version_is_named_and_costs_one_layer(tmp_path, monkeypatch):
    write_run(tmp_path, {"good": GOOD})
    monkeypatch.setattr(metadata, "SCHEMA_VERSION", 2)
    write_run(tmp_path, {"new": GOOD})
    monkeypatch.undo()
    served = client(tmp_path)
    layers = overview(served, ".")
    assert layers["good"]["problem"] is None
    assert layers["good"]["num_units"] == 8
    assert "schema version 2, but this tab reads version 1" in layers["new"]["problem"]
    response = served.get(f"{ROUTE}/layer", query_string={"run": ".", "layer": "new"})
    assert response.status_code == 400
    assert "upgrade lightning-deadunits" in response.text


def test_marks_of_an_unknown_schema_version_are_named_and_not_drawn(tmp_path, monkeypatch):
    write_run(tmp_path, {"a": GOOD})
    monkeypatch.setattr(metadata, "SCHEMA_VERSION", 2)
    writer = SummaryWriter(str(tmp_path))
    write_reinit(writer, "a", [1], 8, 10)
    writer.close()
    monkeypatch.undo()
    layer = overview(client(tmp_path), ".")["a"]
    assert layer["num_units"] == 8
    assert layer["reinitialised"] == 0
    assert "schema version 2" in layer["problem"]


def broken_tensor(kind: str) -> TensorProto:
    tensor = writing._tensor(np.ones(5, np.float32))
    if kind == "short":
        tensor.tensor_content = b"\0" * 7
    elif kind == "matrix":
        tensor.tensor_shape.dim[0].size = 1
        tensor.tensor_shape.dim.add(size=5)
    else:
        tensor = TensorProto(dtype=7, string_val=[b"dead"], tensor_shape=tensor.tensor_shape)
    return tensor


@pytest.mark.parametrize("kind", ["short", "matrix", "text"])
@pytest.mark.parametrize("loader", LOADERS.values())
def test_a_malformed_tensor_costs_one_layer(tmp_path, kind, loader):
    write_run(tmp_path, {"good": GOOD, "fine": GOOD})
    writer = SummaryWriter(str(tmp_path))
    value = Summary.Value(
        tag="dead_units/bad",
        tensor=broken_tensor(kind),
        metadata=writing._summary_metadata(metadata.TagMetadata("zero_rate")),
    )
    writer._get_file_writer().add_summary(Summary(value=[value]), 0)
    writer.close()
    with tensorboard(tmp_path, loader) as url:

        def layers() -> dict:
            runs = json.loads(get(f"{url}{ROUTE}/runs"))["runs"]
            rows = json.loads(get(f"{url}{ROUTE}/overview?run=."))["layers"] if runs else []
            return {it["layer"]: it for it in rows}

        wait_until(lambda: set(layers()) == {"good", "fine", "bad"})
        assert layers()["bad"]["problem"]
        assert layers()["good"]["num_units"] == layers()["fine"]["num_units"] == 8


def test_the_default_of_samples_never_overrides_the_user():
    for given, expected in [
        ({}, {"dead_units": 1000}),
        (None, {"dead_units": 1000}),
        ({"scalars": 5}, {"scalars": 5, "dead_units": 1000}),
        ({"dead_units": 0}, {"dead_units": 0}),
        ("malformed", "malformed"),
    ]:
        flags = Namespace(samples_per_plugin=given)
        DeadUnitsPlugin().fix_flags(flags)
        assert flags.samples_per_plugin == expected


def test_an_empty_layer_is_no_fault(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    write_zero_rates(writer, "none", np.zeros(0), 0, dead_threshold=1.0)
    writer.close()
    served = client(tmp_path)
    assert overview(served, ".")["none"]["num_units"] == 0
    for path in ("layer", "csv"):
        query = {"run": ".", "layer": "none"}
        assert served.get(f"{ROUTE}/{path}", query_string=query).status_code == 200


def test_reads_are_split_so_that_the_data_server_can_send_them(tmp_path, monkeypatch):
    """Forty times the budget: read in pieces, the widest layer thinned, nothing lost."""
    budget = 20_000
    monkeypatch.setattr("lightning_deadunits.tensorboard_plugin.reading.READ_BUDGET", budget)
    write_run(tmp_path, {**{f"n{at}": rates(40, 100, at) for at in range(5)}, "w": rates(40, 900)})
    layers = overview(client(tmp_path, "--samples_per_plugin=dead_units=40"), ".")
    assert {name: it["num_steps"] for name, it in layers.items() if name != "w"} == {
        f"n{at}": 40 for at in range(5)
    }
    assert layers["w"]["num_steps"] == budget // (4 * 900)
    assert layers["w"]["step"] == 390
