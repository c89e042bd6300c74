"""What the project says of itself in several places is the same in all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import lightning_deadunits

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_deadunits"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return parsed


def test_the_version_is_the_same_everywhere() -> None:
    version = lightning_deadunits.__version__
    assert str(Version(version)) == version
    assert yaml.safe_load((ROOT / ".github/CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / ".github/CHANGELOG.md").read_text()


def test_nothing_else_lies_at_the_top() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    top = {path.partition("/")[0] for path in listed.stdout.split()}
    visible = {name for name in top if not name.startswith(".")}
    houses = {"lightning_deadunits", "tests", "examples"}
    assert visible == {"LICENSE", "README.md", "pyproject.toml"} | houses


def test_the_lowest_environment_has_the_lowest_declared_versions(project: dict[str, Any]) -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / ".ci/lowest.txt").read_text().splitlines()
        if "==" in line
    )
    declared = [Requirement(text) for text in project["project"]["dependencies"]]
    bounds = {r.name: next(s.version for s in r.specifier if s.operator == ">=") for r in declared}
    tested = bounds.keys() & pinned.keys()
    assert {"torch", "lightning", "torchmetrics", "tensorboard", "numpy"} <= tested
    for name in tested:
        assert Version(pinned[name]) == Version(bounds[name]), name


def test_what_the_package_imports_is_declared(project: dict[str, Any]) -> None:
    declared = {Requirement(text).name for text in project["project"]["dependencies"]}
    optional = {
        "matplotlib",
        "pandas",
        "pytorch-lightning",
        "rich",
        "triton",
    }  # imported where asked for
    imported = {
        found.replace("_", "-")
        for path in PACKAGE.rglob("*.py")
        for found in re.findall(r"^\s*(?:from|import) ([a-z_0-9]+)", path.read_text(), re.M)
    }
    outside = imported - {name.replace("_", "-") for name in sys.stdlib_module_names}
    assert outside - {"lightning-deadunits"} <= declared | optional


def test_every_bound_has_its_reason_beside_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") : text.index("[project.urls]")]
    lines = [line for line in block.splitlines() if ">=" in line]
    assert lines
    for line in lines:
        assert re.search(r",\s*# .+", line), line
