"""The house stands: imports point one way, and who looks at a page does not pay for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_deadunits

PACKAGE = Path(lightning_deadunits.__file__).parent
REINIT = "lightning_deadunits.reinit"

# Each floor imports from those before it only.
FLOORS = [
    ["private_api"],
    ["arguments", "counting", "functional", "metric"],
    ["reporting"],
    ["observation"],
    ["scan", "watch"],
    ["distributed"],
    ["reinit"],
    ["tensorboard_plugin"],
    ["lightning"],
    ["callback", "pytorch_lightning"],
]
# And within re-initialisation, from what weights and calls are up to what a Trainer does.
FLOORS_OF_REINIT = [
    ["config", "report", "weights"],
    ["parameters", "plan"],
    ["recording"],
    ["ops"],
    ["dataflow", "optimizers"],
    ["surgery"],
    ["eligibility"],
    ["event"],
    ["revive", "training"],
]
MAY_IMPORT_LIGHTNING = {"callback", "pytorch_lightning", "lightning"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, nested: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if nested else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def allowed(room: str, floors: list[list[str]]) -> set[str]:
    """Return the rooms that one may import from: those of its floor and below."""
    floor = next(i for i, rooms in enumerate(floors) if room in rooms)
    return {name for rooms in floors[: floor + 1] for name in rooms}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    ours = [
        name.split(".")[1:] for name in imports(path) if name.startswith("lightning_deadunits.")
    ]
    alone = {"tensorboard_plugin"} if room(path) == "tensorboard_plugin" else None
    assert {first for first, *_ in ours} <= (alone or allowed(room(path), FLOORS))


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if room(path) == "reinit" and path.name != "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_point_one_way_within_reinit(path: Path) -> None:
    own = path.relative_to(PACKAGE / "reinit").parts[0].removesuffix(".py")
    ours = [name.split(".")[2] for name in imports(path) if name.startswith(f"{REINIT}.")]
    assert set(ours) <= allowed(own, FLOORS_OF_REINIT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightning_is_imported_by_the_callback_alone(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)}
    if room(path) not in MAY_IMPORT_LIGHTNING:
        assert not used & {"lightning", "pytorch_lightning"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in result.stdout.split()}


def test_the_package_and_its_tab_load_neither_torch_nor_lightning() -> None:
    for statement in (
        "import lightning_deadunits",
        "import lightning_deadunits.tensorboard_plugin",
    ):
        assert not loaded_by(statement) & {"torch", "lightning", "pytorch_lightning"}


def test_find_dead_units_needs_no_lightning() -> None:
    loaded = loaded_by("from lightning_deadunits import find_dead_units")
    assert not loaded & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("name", lightning_deadunits.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert (getattr(lightning_deadunits, name).__doc__ or "").strip()
    assert name in dir(lightning_deadunits)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'find_living_units'"):
        lightning_deadunits.find_living_units  # noqa: B018
