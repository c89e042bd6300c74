from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_deadunits.tensorboard_plugin import pooling
from lightning_deadunits.tensorboard_plugin.bundle import pack
from lightning_deadunits.tensorboard_plugin.export import csv_lines, csv_parts, units_per_file
from lightning_deadunits.tensorboard_plugin.history import History
from lightning_deadunits.tensorboard_plugin.ordering import unit_order
from lightning_deadunits.tensorboard_plugin.pooling import evenly_spaced, pool
from lightning_deadunits.tensorboard_plugin.series import from_events

from .serving import unpack
from .synthetic import rates as synthetic_rates


def history(values: np.ndarray) -> History:
    rows = [
        SimpleNamespace(step=at, wall_time=0.0, numpy=row.astype(np.float32))
        for at, row in enumerate(values)
    ]
    return History(from_events(rows), 1.0)


def test_units_are_ordered_by_when_they_died_then_by_rate():
    lives = history(np.array([[0.1, 1.0, 0.2, 0.3, np.nan], [0.4, 1.0, 1.0, 0.5, np.nan]]))
    assert unit_order(lives, "death").tolist() == [1, 2, 3, 0, 4]
    assert unit_order(lives, "rate").tolist() == [1, 2, 3, 0, 4]
    assert unit_order(lives, "index").tolist() == [0, 1, 2, 3, 4]


def test_ties_keep_the_order_of_the_indices():
    assert unit_order(history(np.ones((2, 40))), "death").tolist() == list(range(40))


def test_what_fits_is_sent_as_it_was_written():
    values = synthetic_rates(20, 50)
    pooled = pool(history(values), np.arange(50)[::-1])
    assert pooled.dead_share is None
    np.testing.assert_array_equal(pooled.rates, values[:, ::-1])


def test_pooling_matches_a_slow_loop(monkeypatch):
    monkeypatch.setattr(pooling, "MAX_ROWS", 7)
    rng = np.random.default_rng(0)
    values = rng.choice([0.25, 0.75, 1.0, np.nan], size=(6, 30))
    lives = history(values)
    order = rng.permutation(30)
    pooled = pool(lives, order)
    assert pooled.units_per_row == 5
    assert pooled.dead_share is not None
    for row in range(6):
        for column in range(6):
            cell = [values[column, unit] for unit in order[5 * row : 5 * row + 5]]
            seen = [rate for rate in cell if not np.isnan(rate)]
            living = [rate for rate in seen if rate < 1]
            share = (len(seen) - len(living)) / len(seen) if seen else np.nan
            mean = np.mean(living) if living else 1.0 if seen else np.nan
            np.testing.assert_allclose(pooled.dead_share[column, row], share, rtol=1e-6)
            np.testing.assert_allclose(pooled.rates[column, row], mean, rtol=1e-6)


def test_one_dead_unit_among_100_000_shows_in_its_row():
    values = np.full((3, 100_000), 0.5)
    values[:, 54_321] = 1.0
    pooled = pool(history(values), np.arange(100_000))
    assert pooled.dead_share is not None
    rows = np.flatnonzero(pooled.dead_share[-1])
    assert rows.tolist() == [54_321 // pooled.units_per_row]


@pytest.mark.parametrize("shape", [(300, 16_384), (1, 1), (2_000, 3), (5, 100_000)])
def test_no_heat_map_is_larger_than_what_may_be_sent(shape):
    pooled = pool(history(np.zeros(shape)), np.arange(shape[1]))
    assert pooled.rates.size <= pooling.MAX_CELLS
    assert pooled.rates.shape[1] <= pooling.MAX_ROWS
    assert pooled.rates.shape[1] == -(-shape[1] // pooled.units_per_row)


def test_16_384_units_by_300_steps_are_not_pooled():
    assert pool(history(np.zeros((300, 16_384))), np.arange(16_384)).units_per_row == 1


def test_thinned_steps_hold_the_first_and_the_last():
    assert evenly_spaced(10_000, 5).tolist() == [0, 2500, 5000, 7499, 9999]
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]


def test_a_bundle_can_be_read_as_documented():
    arrays = {
        "odd": np.arange(3, dtype=np.uint8),
        "wide": np.array([[1.5, np.nan]]),
        "big_endian": np.arange(4, dtype=">u4"),
    }
    content = pack({"text": "ü", "missing": np.nan}, arrays)
    header, read = unpack(content)
    assert (header["text"], header["missing"]) == ("ü", None)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
    start = 4 + int.from_bytes(content[:4], "little")
    offsets = [it["offset"] for it in header["arrays"].values()]
    assert all((start + offset) % 8 == 0 for offset in offsets)


def test_the_json_of_a_bundle_holds_no_nan():
    text = pack({"rates": [np.float32("inf"), float("nan")]}, {})[4:]
    assert json.loads(text)["rates"] == [None, None]


def test_csv_reads_back_as_the_same_float32():
    rng = np.random.default_rng(0)
    values = rng.random((4, 30)).astype(np.float32)
    values[0, :4] = [np.nan, 1.0, np.nextafter(np.float32(1), np.float32(0)), 1e-38]
    lines = list(csv_lines(history(values).rates, range(30)))
    assert lines[0] == "unit,0,1,2,3\r\n"
    table = np.array([line.strip().split(",")[1:] for line in lines[1:]], dtype=np.float32)
    np.testing.assert_array_equal(table.T, values)


def test_every_part_of_a_csv_fits_into_a_file():
    lives = history(np.full((7, 90), np.nextafter(np.float32(1.2e-38), np.float32(0))))
    limit = 2_000
    fitting = units_per_file(lives.rates, limit)
    text = "".join(csv_lines(lives.rates, range(fitting)))
    assert len(text) <= limit


def test_the_parts_of_a_csv_cover_every_unit_once(monkeypatch):
    monkeypatch.setattr("lightning_deadunits.tensorboard_plugin.export.MAX_FILE_BYTES", 2_000)
    parts = [part.split("-") for part in csv_parts(history(np.zeros((7, 90))).rates)]
    units = [unit for first, last in parts for unit in range(int(first), int(last) + 1)]
    assert units == list(range(90))
    assert len(parts) > 1
