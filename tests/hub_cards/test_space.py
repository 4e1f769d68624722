"""The page to try a checkpoint: what it says of files, the Space's own files, and the page itself in a browser."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from hub_cards.space.app import LARGEST_MB, NOT_NAMED, SHIPPED, Reader
from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMClassifier,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.atlases import region_names
from modeling_lcm.connectivity import connectivity_from_triangle
from modeling_lcm.limits_lcm import TrainingLimits
from tests.conftest import REPOSITORY
from tests.training.preparation.layouts import signals_of


SPACE = REPOSITORY / "hub_cards" / "space"
SEX = BEIVariable("sex", "categorical", ["F", "M"])
AGE = BEIVariable("age", "continuous", unit="years", mean=40.0, std=10.0)


def make_scans(scans: int = 30) -> list[np.ndarray]:
    """Signals `(120, 116)` whose regions go together in pairs."""
    rng = np.random.default_rng(7)
    return [signals_of(number, 120, rng) for number in range(scans)]


def save_model(folder: Path, tokenizer: BEITokenizer, limits: bool = True, **settings: Any) -> Path:
    """A checkpoint with random weights, whose limits are those of made-up scans."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = LCMConfig(num_regions=116, bei_variables=tokenizer.model_variables, **sizes, **settings)
    kind = LCMForSequenceClassification if config.task_variable else LCMForMultitaskPretraining
    kind(config).save_pretrained(folder)
    processor = LCMProcessor(FCFeatureExtractor(atlas="aal-116"), tokenizer)
    if limits:
        matrices = np.stack([np.corrcoef(scan.T) for scan in make_scans()])
        processor.limits = TrainingLimits.of(matrices, range(len(matrices)))
        assert processor.limits is not None
        processor.limits.learn_ages(np.linspace(20, 60, len(matrices)))
        processor.limits.learn_errors("age", [30.0] * 20, [30.0 + number for number in range(20)])
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of AAL."""
    return save_model(tmp_path_factory.mktemp("app") / "checkpoint", BEITokenizer(variables=[SEX, AGE]))


@pytest.fixture(scope="module")
def reader(checkpoint: Path) -> Reader:
    """What answers about scans."""
    return Reader(str(checkpoint))


@pytest.fixture
def write(tmp_path: Path, rng: np.random.Generator) -> Callable[[str], Path]:
    """Function that writes a file of one kind."""
    signals = make_scans()[3]
    fc = np.corrcoef(signals.T)

    def fisher(matrix: np.ndarray) -> np.ndarray:
        z = np.arctanh(np.clip(matrix, -0.999, 0.999))
        np.fill_diagonal(z, 0)
        return z

    def write_kind(kind: str) -> Path:
        path = tmp_path / f"{kind}.npy"
        if kind == "named":
            path = path.with_suffix(".tsv")
            names = region_names("aal-116")
            pd.DataFrame(signals, columns=names)[names[::-1]].to_csv(path, sep="\t", index=False)
            return path
        content = {
            "good": lambda: fc,
            "series": lambda: signals,
            "wrong atlas": lambda: np.corrcoef(rng.standard_normal((200, 300))),
            "fisher z": lambda: fisher(fc),
            "noise": lambda: np.corrcoef(rng.standard_normal((116, 300))),
            "huge": lambda: np.zeros((3000, 1000)),
            "cohort": lambda: np.stack([fc] * 3),
        }
        np.save(path, content[kind]())
        return path

    return write_kind


def test_a_scan_like_the_training_scans(reader: Reader, write: Callable[[str], Path]) -> None:
    answers = {kind: reader.read(write(kind), age=30) for kind in ("good", "series", "named")}
    for kind, answer in answers.items():
        assert "resembles the training scans" in answer.status
        quality = dict(answer.quality)
        assert quality["regions without signal"] == "none"
        assert (quality.get("remark") == NOT_NAMED) == (kind != "named")
        (first, label, _), (second, age, _) = answer.predictions
        assert (first, second) == ("sex", "age")
        # Also of regions in another order, with names.
        assert label == answers["good"].predictions[0][1]
        assert float(age.split()[0]) == pytest.approx(float(answers["good"].predictions[1][1].split()[0]), abs=0.15)
        assert re.fullmatch(r"90 % range -?[\d.]+ to -?[\d.]+", answer.predictions[1][2])
        assert set(answer.maps) == {"sex=F", "sex=M", "age"}
        for values in answer.maps.values():
            assert values.mean() == pytest.approx(1, abs=1e-4)
        assert answer.shown == f"sex={answer.predictions[0][1]}"
    assert dict(answers["series"].quality)["read as"] == "120 volumes of 116 regions"
    assert reader.draw(answers["good"], "age") is not None


@pytest.mark.parametrize(("kind", "age", "reason"), [("noise", None, "Mean FC"), ("good", 90, "Age 90 lies outside")])
def test_a_scan_unlike_them(
    kind: str, age: float | None, reason: str, reader: Reader, write: Callable[[str], Path]
) -> None:
    answer = reader.read(write(kind), age)
    assert "no prediction is shown" in answer.status
    assert reason in answer.status
    assert answer.predictions == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong atlas", r"200 regions \(.*schaefer-200.*\), but this processor is for 116"),
        ("fisher z", r"Undo Fisher's z"),
        ("huge", rf"24 MB, and one scan has at most {LARGEST_MB}"),
        ("cohort", r"shape \(3, 116, 116\): one scan is needed"),
    ],
)
def test_refusals(kind: str, message: str, reader: Reader, write: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        reader.read(write(kind))
    assert len(str(refused.value)) < 400


def test_what_is_no_scan(reader: Reader, tmp_path: Path) -> None:
    image = tmp_path / "bold.nii.gz"
    image.write_bytes(b"x")
    with pytest.raises(ValueError, match="no file of one scan that is read here"):
        reader.read(image)
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fc.npy", b"\0" * 210_000_000)
    with pytest.raises(ValueError, match="210 MB unpacked"):
        reader.read(bomb)


def test_a_finetuned_checkpoint_without_limits(tmp_path: Path, write: Callable[[str], Path]) -> None:
    group = BEIVariable("group", "categorical", ["control", "patient"])
    tokenizer = BEITokenizer(variables=[SEX, AGE]).add_variable(group, task=True)
    labels = {"id2label": {0: "control", 1: "patient"}, "label2id": {"control": 0, "patient": 1}}
    task = {"problem_type": "single_label_classification", "task_variable": "group", **labels}
    reader = Reader(str(save_model(tmp_path / "tuned", tokenizer, limits=False, **task)))
    answer = reader.read(write("good"))
    assert answer.status.startswith("Limits not known")
    assert [name for name, *_ in answer.predictions] == ["group", "sex", "age"]
    assert answer.shown.startswith("group=")
    assert {"group=control", "group=patient"} < set(answer.maps)


def test_a_closed_form_checkpoint_says_which_regions_moved_its_answer(
    tmp_path: Path, write: Callable[[str], Path]
) -> None:
    """The shares are those of the edges' own weights: of two regions alone, where the weights are of one edge."""
    matrices = np.stack([np.corrcoef(scan.T) for scan in make_scans()])
    LCMClassifier().fit(
        {"aal-116": matrices}, np.array(["control", "patient"])[np.arange(len(matrices)) % 2]
    ).save_pretrained(tmp_path / "fitted")
    reader = Reader(str(tmp_path / "fitted"))
    answer = reader.read(write("good"))
    ((_, label, sure),) = answer.predictions
    assert label in ("control", "patient")
    assert sure.startswith("probability")
    assert {values.shape for values in answer.maps.values()} == {(116,)}
    # Two labels: what moves one of them moves the other as much.
    first, second = answer.maps.values()
    np.testing.assert_allclose(first, second, rtol=1e-3)
    assert "edges moved the answer" in reader.about_map(answer)
    with torch.no_grad():
        reader.model.bei_edge_readout.weight.zero_()
        reader.model.bei_edge_readout.weight[0, 0] = 1.0  # the edge of the first two regions
    alone = next(iter(reader.read(write("good")).maps.values()))
    np.testing.assert_allclose(alone, np.r_[58.0, 58.0, np.zeros(114)], atol=1e-6)


def test_the_weights_that_come_along(rng: np.random.Generator, tmp_path: Path) -> None:
    """They have several atlases: a scan is read in the one that it fits."""
    reader = Reader(str(SHIPPED))
    with np.load(REPOSITORY / "training" / "demo_data" / "lemon-schaefer200" / "fc.npz") as stored:
        np.save(tmp_path / "scan.npy", connectivity_from_triangle(stored["fc_triu"][5], triangle="upper"))
    answer = reader.read(tmp_path / "scan.npy")
    assert answer.atlas == "schaefer-200"
    assert "resembles the training scans" in answer.status
    assert {"sex", "age"} <= {name for name, *_ in answer.predictions}
    assert reader.draw(answer, answer.shown) is not None
    np.save(tmp_path / "noise.npy", np.corrcoef(rng.standard_normal((116, 60))))
    noise = reader.read(tmp_path / "noise.npy")
    assert noise.atlas == "aal-116"
    assert noise.predictions == []


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="holds a BertModel: a checkpoint of this package is needed"):
        Reader(str(tmp_path))


def test_files_of_the_space(tmp_path: Path) -> None:
    """Its card and requirements fit the package, and the app starts from a Space's own layout."""
    _, front, _ = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert (SPACE / card["app_file"]).is_file()
    assert card["sdk"] == "gradio"
    assert len(card["short_description"]) <= 60
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert set(wanted) <= {*project["dependencies"], *extras["train"]}
    assert set(project["dependencies"]) <= set(wanted)
    assert extras["app"] == [f"gradio>={card['sdk_version'].rsplit('.', 1)[0]}"]
    for name in ("app.py", "requirements.txt"):
        shutil.copy(SPACE / name, tmp_path)
    for package in ("modeling_lcm", "training"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("demo_data"))
    code = "import app, modeling_lcm, training; print(modeling_lcm.__file__, training.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert all(str(tmp_path) in place for place in done.stdout.split())


def needs_browser() -> str | None:
    """Why the page cannot be tried here, or the browser."""
    for package in ("gradio", "playwright"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install -e '.[app,dev]'")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return browser


@pytest.fixture
def address(checkpoint: Path, tmp_path: Path) -> Iterator[str]:
    """The running page."""
    needs_browser()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    command = [sys.executable, "-m", "hub_cards.space.app", "--checkpoint", str(checkpoint), "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def test_the_page_in_a_browser(address: str, write: Callable[[str], Path]) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=needs_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        elsewhere: list[str] = []
        page.on("request", lambda request: elsewhere.append(request.url) if address not in request.url else None)

        def drop(kind: str) -> None:
            page.goto(address)
            page.set_input_files("input[type=file]", write(kind))

        drop("good")
        expect(page.locator("#status")).to_contain_text("resembles the training scans")
        expect(page.locator("#predictions")).to_contain_text("probability")
        expect(page.locator("#quality")).to_contain_text(NOT_NAMED)
        expect(page.locator("#map img")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for kind, words in (("wrong atlas", "this processor is for 116"), ("fisher z", "Undo Fisher's z")):
            drop(kind)
            expect(page.locator("#status")).to_contain_text("This file was not used.")
            expect(page.locator("#status")).to_contain_text(words)
        drop("noise")
        expect(page.locator("#status")).to_contain_text("no prediction is shown")
        drop("huge")
        expect(page.locator("body")).to_contain_text("exceed the maximum allowed size")
        assert not [url for url in elsewhere if url.startswith("http")]
        browser.close()
