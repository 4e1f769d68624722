"""Settings of commands: flags, YAML, what is refused and how, and how a command ends."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.command_line.cli import (
    command,
    load_yaml,
    parse_arguments,
    require_choices,
    sentence_of,
    setting,
    use_threads,
)


@dataclass
class Settings:
    """Do something. With care."""

    data: str = setting("", "Folder.", example="runs/data", required=True)
    epochs: int = setting(3, "Passes.", group="input")
    rate: float = setting(1e-3, "Rate, in %.")
    labels: list[str] = setting(["a"], "Labels.")
    others: list[str] | None = setting(None, "More of them.")
    kind: Literal["one", "two"] = setting("one", "Which.", group="method")
    resume: bool = setting(False, "Go on.")
    dry_run: bool = setting(True, "Only show.")
    fold: int | None = setting(None, "Fold.")


def read(*argv: str) -> Settings:
    return parse_arguments(Settings, list(argv))


def from_yaml(folder: Path, text: str, *argv: str) -> Settings:
    (folder / "settings.yaml").write_text(text)
    return read("--config", str(folder / "settings.yaml"), *argv)


def test_flags() -> None:
    assert read() == Settings()
    every = read("--data=x", "--epochs", "4", "--labels", "PD", "no", "--kind", "two", "--resume", "--no-dry-run")
    assert every == Settings("x", 4, labels=["PD", "no"], kind="two", resume=True, dry_run=False)
    assert read("--labels").labels == []
    assert not read("--dry-run", "false").dry_run
    assert not read("--no_dry_run").dry_run
    assert read("--labels", "-9999", "007").labels == ["-9999", "007"]
    assert read("--fold", "2").fold == 2
    assert parse_arguments(Settings, ["here", "--fold", "2"], ("data",)) == Settings("here", fold=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epoch", "4"], r"Unknown settings or too many values: --epoch 4. Did you mean --epochs\? See --help."),
        (["--dry-ran"], "Did you mean --dry_run"),
        (["x"], "too many values: x. See --help."),
        (["--epochs", "ten"], "--epochs is 'ten': a whole number is needed."),
        (["--rate", "fast"], "--rate is 'fast': a number is needed."),
        (["--resume", "maybe"], "--resume is 'maybe': true or false is needed."),
        (["--kind", "tow"], "--kind must be one of one, two, got 'tow'."),
        (["--epochs"], "Argument --epochs: expected one argument. See --help."),
    ],
)
def test_flags_that_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(*argv)


def test_required_settings_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    @command(Settings, "data")
    def main(settings: Settings) -> None:
        print(settings.data, settings.kind)

    with pytest.raises(SystemExit, match="2"):
        main([])
    assert capsys.readouterr().err == "error: No data was given: add --data runs/data. See --help.\n"
    main(["here", "--kind", "two"])
    assert capsys.readouterr().out == "here two\n"
    with pytest.raises(ValueError, match="kind must be one of one, two, got 'three'"):
        require_choices(Settings("x", kind="three"))
    require_choices(Settings("x"))


def test_yaml_is_what_was_written(tmp_path: Path) -> None:
    text = (
        "labels: [no, 007, --x, 1:30, 2020-01-01, 'null']\nrate: 1e-4\nresume: yes\nothers: []\nfold: null\nepochs:\n"
    )
    settings = from_yaml(tmp_path, text, "--rate", "0.5")
    assert settings.labels == ["no", "007", "--x", "1:30", "2020-01-01", "null"]
    assert (settings.rate, settings.resume, settings.others, settings.fold) == (0.5, True, [], None)
    assert from_yaml(tmp_path, "labels: PD\n").labels == ["PD"]
    assert from_yaml(tmp_path, "rate: .inf\n").rate == float("inf")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown settings epoch. Did you mean epochs\\? --help lists all"),
        ("epochs: 1.5", "epochs is '1.5': a whole number is needed"),
        ("epochs: [1, 2]", "one value is needed"),
        ("labels: [a, null]", "one value is needed"),
        ("labels: {a: 1}", "a list is needed"),
        ("labels: [[a]]", "one value is needed"),
        ("epochs: 1\nepochs: 2", "'epochs' stands there twice"),
        ("- epochs", "must hold a table"),
        ("epochs: [", "is not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_yaml(tmp_path, text)


def test_tables_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "table.yaml").write_text("a: no\nb: 007\nc: [1, 2.5, 1e-3, true, null, .inf, 1:30]\n")
    content = load_yaml(tmp_path / "table.yaml")
    assert content == {"a": "no", "b": "007", "c": [1, 2.5, 1e-3, True, None, float("inf"), "1:30"]}
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load_yaml(tmp_path / "nowhere.yaml")


@given(st.text())
def test_any_yaml_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    for reader in (load_yaml, lambda path: parse_arguments(Settings, ["--config", str(path)])):
        try:
            reader(path)
        except ValueError as error:
            assert len(str(error)) < 2000 + 2 * len(text)


def test_help_shows_groups_defaults_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Do something.",
        "required:",
        "Example: --data runs/data",
        "input:",
        "method:",
        "One of: one, two. Default: one. Example: --kind two",
        "Default: 3.",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ValueError("no such column"), 2, "error: no such column"),
        (OSError("disk full"), 2, "error: disk full"),
        (KeyboardInterrupt(), 130, "stopped: by the user."),
    ],
)
def test_how_a_command_ends(
    raised: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command(Settings)
    def main(settings: Settings) -> None:
        raise raised

    with pytest.raises(SystemExit) as stopped:
        main(["--data", "x"])
    assert stopped.value.code == code
    assert capsys.readouterr().err.strip() == message


def test_nothing_heavy_is_imported_for_settings() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pandas'}"
    code = f"import sys, training.command_line.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_library_that_is_not_installed_is_named_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    @command(Settings)
    def main(settings: Settings) -> None:
        import not_there.at_all  # noqa: F401

    with pytest.raises(SystemExit, match="2"):
        main(["--data", "x"])
    message = "error: not_there is not installed: run pip install 'large-connectome-model[train]'."
    assert capsys.readouterr().err.strip() == message


def test_threads_follow_what_is_available_and_the_users_own_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # what a container's quota does
    use_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("1", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    use_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("7", "PASSIVE")


def test_an_error_is_one_short_line_without_control_characters() -> None:
    error = ValueError(f"a\nlabel \x1b[31m {'x' * 1000} {'word ' * 400}: use another.")
    text = sentence_of(error)
    assert text.startswith(r"a label \x1b[31m x")
    assert text.endswith("use another.")
    assert text.isprintable()
    assert len(text) < 700
