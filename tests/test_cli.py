"""Every option from YAML and from the command line, through a real LightningCLI."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_deadunits import DeadUnitCallback, ReinitConfig

EXAMPLES = Path(__file__).parent.parent / "examples"
CALLBACK = "lightning_deadunits.DeadUnitCallback"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that runs ``examples/cli.py`` and returns what it printed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    import cli as module

    def run(*arguments: str) -> tuple[Any, str]:
        output, made = io.StringIO(), None
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            made = module.main(list(arguments))
        return made, output.getvalue()

    yield run
    sys.modules.pop("cli", None)


def callback_of(made: Any) -> DeadUnitCallback:
    return next(c for c in made.trainer.callbacks if isinstance(c, DeadUnitCallback))


def words_of(text: str, option: str) -> int:
    """Count the words by which a help text explains an option."""
    assert option in text, f"{option}is missing"
    explained, typed, _ = text.split(option)[-1].partition("(type:")
    assert typed, f"{option}has no type"
    return len(explained.split())


def test_an_option_that_is_missing_or_not_explained_is_found_out() -> None:
    text = "--a A   what a does (type: int) --b B (type: int) --d D says nothing of its type"
    assert words_of(text, "--a ") == 4
    assert words_of(text, "--b ") == 1
    with pytest.raises(AssertionError, match="--d has no type"):
        words_of(text, "--d ")
    with pytest.raises(AssertionError, match="--c is missing"):
        words_of(text, "--c ")


def test_help_explains_every_option(cli: Any) -> None:
    _, text = cli("fit", f"--trainer.callbacks.help={CALLBACK}")
    for name in inspect.signature(DeadUnitCallback).parameters:
        assert words_of(text, f"--trainer.callbacks.{name} ") > 4, name


def test_help_explains_every_option_of_reinit() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ReinitConfig, "reinit")
    text = parser.format_help()
    for field in dataclasses.fields(ReinitConfig):
        assert words_of(text, f"--reinit.{field.name} ") > 4, field.name


def test_print_config_round_trips(cli: Any, tmp_path: Path) -> None:
    options = (
        f"--trainer.callbacks+={CALLBACK}",
        "--trainer.callbacks.layers=[conv*,hidden.*]",
        "--trainer.callbacks.dead_threshold=0.99",
        "--trainer.callbacks.reinit.patience=3",
    )
    _, first = cli("fit", *options, "--print_config")
    (tmp_path / "config.yaml").write_text(first)
    _, second = cli("fit", "--config", str(tmp_path / "config.yaml"), "--print_config")
    assert yaml.safe_load(first) == yaml.safe_load(second)
    given = yaml.safe_load(first)["trainer"]["callbacks"][0]["init_args"]
    assert given["layers"] == ["conv*", "hidden.*"]
    assert given["reinit"]["patience"] == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trainer.callbacks.reinit=true"], ReinitConfig()),
        (["--trainer.callbacks.reinit=false"], None),
        (["--trainer.callbacks.reinit.patience=3"], ReinitConfig(patience=3)),
    ],
)
def test_a_run_from_the_command_line(
    cli: Any, arguments: list[str], expected: ReinitConfig | None
) -> None:
    made, _ = cli(
        "fit", f"--trainer.callbacks+={CALLBACK}", *arguments, "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu",
    )  # fmt: skip
    assert callback_of(made).reinit == expected
    assert "conv1.relu" in callback_of(made).report


def test_the_shipped_yaml_runs(cli: Any) -> None:
    made, _ = cli(
        "fit", "--config", str(EXAMPLES / "cli.yaml"), "--trainer.max_epochs=1",
        "--trainer.logger=false",
    )  # fmt: skip
    callback = callback_of(made)
    assert list(callback.report.layers) == ["conv1.relu", "conv2.relu"]
    assert callback.reinit.patience == 2


def test_the_twin_is_accepted_by_the_other_cli(tmp_path: Path) -> None:
    from pytorch_lightning.cli import LightningCLI
    from pytorch_lightning.demos.boring_classes import BoringModel

    made = LightningCLI(
        BoringModel,
        run=False,
        args=["--trainer.callbacks+=lightning_deadunits.pytorch_lightning.DeadUnitCallback"],
        save_config_callback=None,
    )
    assert any(type(c).__name__ == "DeadUnitCallback" for c in made.trainer.callbacks)
