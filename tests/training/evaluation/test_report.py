"""Reports: complete, self-contained, escaped HTML; tables that name what is undefined; figures that show the data."""

import base64
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from training.evaluation.metrics import summarise
from training.reporting.figures import (
    plot_confusion,
    plot_network_bars,
    plot_region_attention,
    plot_roc,
    plot_training_curves,
)
from training.reporting.results import Score, TaskResults
from training.reporting.tables import results_table_markdown, results_table_text, write_report


VOID_TAGS = {"meta", "img", "br", "hr", "link"}


class Reader(HTMLParser):
    """Collects images, text and references of a page, and fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.images: dict[str, bytes] = {}
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.references += [attributes[name] for name in ("src", "href", "srcset") if name in attributes]
        if tag == "img":
            kind, _, content = attributes["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.images[attributes["alt"]] = base64.b64decode(content, validate=True)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data):
        self.text += data


def read(path) -> Reader:
    """The parsed page, after checking that it is complete."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def results() -> TaskResults:
    """Two models over three folds."""
    return TaskResults(
        title="Young <b>vs</b> elderly & more",
        protocol={"task": "cohort", "labels": ["young", "elderly"], "split_by": "<script>subject</script>"},
        n_subjects=168,
        models={
            "LCM": summarise([{"accuracy": 0.9, "roc_auc": 0.97}] * 2 + [{"accuracy": 0.96, "roc_auc": 0.94}]),
            "majority": summarise([{"accuracy": 0.68, "roc_auc": 0.5}] * 3),
        },
        chance={"roc_auc": 0.5},
        notes=["Age is known to 5 years <only>."],
    )


@pytest.fixture
def figure() -> Figure:
    """A figure with one line."""
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    return figure


def test_write_report_contains_every_picture_and_nothing_external(tmp_path, results, figure):
    captions = ["Loss by epoch", 'ROC of "LCM" & co', "Attention <regions>"]
    page = read(write_report(tmp_path / "report.html", results, dict.fromkeys(captions, figure)))
    assert list(page.images) == captions
    assert all(content.startswith(b"\x89PNG\r\n\x1a\n") for content in page.images.values())
    assert all(reference.startswith("data:") for reference in page.references)
    assert not page.tags & {"script", "link", "iframe"}
    assert "http" not in page.text


def test_write_report_says_what_it_is_and_what_was_found(tmp_path, results, figure):
    settings = {"fine-tuning": {"learning_rate": 1e-4, "lora": False, "checkpoint": None}}
    page = read(write_report(tmp_path / "report.html", results, {"a": figure}, settings=settings))
    text = " ".join(page.text.split())
    assert "Research use, not a diagnostic device" in text
    assert "168 subjects; ROC AUC" in text
    assert "over 3 folds" in text
    assert "LCM 0.960 ± 0.017, majority 0.500 ± 0.000, chance 0.500" in text
    assert "0.970 0.970 0.940" in text
    assert "fine-tuning: learning rate 0.0001" in text
    assert "fine-tuning: lora no" in text


def test_write_report_escapes_text_of_the_results(tmp_path, results, figure):
    path = write_report(tmp_path / "report.html", results, {"a": figure})
    page = read(path)
    assert "b" not in page.tags
    assert "Young <b>vs</b> elderly & more" in page.text
    assert "<script>subject</script>" in page.text
    assert "Age is known to 5 years <only>." in page.text
    assert "<script>" not in path.read_text(encoding="utf-8")


def test_write_report_one_model_without_optional_parts(tmp_path, results):
    models = {"LCM": summarise([{"mae": 4.123, "r2": 0.5}])}
    minimal = TaskResults(results.title, results.protocol, results.n_subjects, models)
    text = read(write_report(tmp_path / "report.html", minimal, {})).text
    assert "168 subjects; mean absolute error: LCM 4.12." in text
    assert "Pictures" not in text
    assert "±" not in text


def test_write_report_failing_figure_keeps_the_previous_report(tmp_path, results, figure, monkeypatch):
    path = write_report(tmp_path / "report.html", results, {"a": figure})
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, results, {"a": figure})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("missing", ["title", "protocol", "n_subjects", "models"])
def test_results_without_a_part_are_refused(tmp_path, results, missing):
    content = results.to_json()
    del content[missing]
    with pytest.raises(ValueError, match=f"lacks {missing}"):
        TaskResults.from_json(content)


def test_results_without_a_model_are_refused(results):
    results.models = {}
    with pytest.raises(ValueError, match="no model"):
        results_table_markdown(results)


def test_results_table_text_lines_up(results):
    lines = results_table_text(results).splitlines()
    assert lines[0].split() == ["model", "ROC", "AUC", "accuracy"]
    assert set(lines[1]) == {"-", " "}
    assert [line.split()[0] for line in lines[2:]] == ["LCM", "majority", "chance"]
    column = lines[0].index("accuracy")
    assert [line[column : column + 5] for line in lines[2:4]] == ["0.920", "0.680"]


def test_results_table_markdown_has_chosen_columns_and_escapes_bars(results):
    results.models["a|b"] = results.models.pop("majority")
    lines = results_table_markdown(results, ["accuracy", "mae"]).splitlines()
    assert lines == [
        "| model | accuracy | mean absolute error |",
        "| --- | --- | --- |",
        "| LCM | 0.920 ± 0.035 | - |",
        "| a\\|b | 0.680 ± 0.000 | - |",
        "| chance | - | - |",
    ]


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_results_table_undefined_values_are_named_not_zero(results, nothing):
    once = {"mean": 0.9, "std": nothing, "per_fold": [0.9, nothing, nothing]}
    never = {"mean": nothing, "std": nothing, "per_fold": [nothing] * 3}
    results.models["LCM"]["roc_auc"] = Score.from_json(once)
    results.models["majority"]["roc_auc"] = Score.from_json(never)
    rows = results_table_markdown(results, ["roc_auc"]).splitlines()
    assert rows[2] == "| LCM | 0.900 (1 of 3 folds) |"
    assert rows[3] == "| majority | undefined |"


def record(epoch: int, **values) -> dict:
    """One epoch of a history, whose stage changes at epoch 2."""
    stage = "momentum" if epoch < 2 else "adaptive_per_bei"
    return {"epoch": epoch, "stage": stage, "train_loss": 1.0 / (epoch + 1), "validation_loss": 1.0} | values


def test_plot_training_curves_marks_stage_and_averages_folds():
    histories = [[record(epoch, train_loss=float(epoch + 2 * fold)) for epoch in range(4)] for fold in (0, 1)]
    (axes,) = plot_training_curves(histories).axes
    mean = next(line for line in axes.lines if line.get_label() == "training subjects")
    np.testing.assert_allclose(mean.get_xydata(), [[0, 1], [1, 2], [2, 3], [3, 4]])
    assert len(axes.lines) == 2 * (2 + 1) + 1  # two folds and their mean for both losses; the switch
    assert axes.lines[-1].get_xdata()[0] == 1.5
    assert [text.get_text() for text in axes.texts] == ["adaptive per bei stage"]


def test_plot_training_curves_one_run_without_validation_is_one_line():
    (axes,) = plot_training_curves([[record(epoch, validation_loss=None, stage=None) for epoch in range(3)]]).axes
    assert [line.get_label() for line in axes.lines] == ["training subjects"]


def test_plot_training_curves_mean_ends_with_the_shortest_fold():
    (axes,) = plot_training_curves([[record(epoch) for epoch in range(length)] for length in (3, 4)]).axes
    mean = next(line for line in axes.lines if line.get_label() == "validation subjects")
    assert list(mean.get_xdata()) == [0, 1, 2]


@pytest.mark.parametrize("histories", [[], [[], []]])
def test_plot_training_curves_without_epochs_are_refused(histories):
    with pytest.raises(ValueError, match="empty"):
        plot_training_curves(histories)


def test_plot_roc_pools_folds_and_gives_the_tables_areas():
    perfect = ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    inverted = ([0, 1], [0.9, 0.1])
    curves = {"LCM": [perfect, perfect, ([0, 0], [0.1, 0.2])], "bad": [inverted]}
    (axes,) = plot_roc(curves).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "chance (AUC 0.50)", "LCM (AUC 1.00)", "bad (AUC 0.00)"
    ]  # fmt: skip
    pooled = next(line for line in axes.lines if line.get_label().startswith("LCM"))
    assert pooled.get_ydata()[0] == 0 and pooled.get_ydata()[-1] == 1
    assert len(axes.lines) == 3  # folds of two subjects a class have no curve of their own
    (axes,) = plot_roc(curves, {"LCM": "0.991 [0.980, 1.000]"}).axes
    assert "LCM (AUC 0.991 [0.980, 1.000])" in [text.get_text() for text in axes.get_legend().get_texts()]
    large = ([0] * 10 + [1] * 10, list(range(20)))
    assert len(plot_roc({"LCM": [large, large]}).axes[0].lines) == 4


def test_plot_roc_without_a_curve_is_refused():
    with pytest.raises(ValueError, match="both classes"):
        plot_roc({"LCM": [([1, 1], [0.1, 0.2])]})
    with pytest.raises(ValueError, match="No model"):
        plot_roc({})


def test_plot_confusion_shows_counts_shares_and_absent_classes():
    figure = plot_confusion([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], ["young", "elderly", "unseen"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["3\n75%", "1\n25%", "0\n0%", "0\n0%", "1\n100%", "0\n0%", "0", "0", "0"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["young", "elderly", "unseen"]


def test_plot_region_attention_draws_every_region_the_highest_last():
    coordinates = np.array([[-40, -60, 10], [30, 20, 40], [0, 50, -10], [20, -30, 60]], dtype=float)
    figure = plot_region_attention([0.1, 0.6, 0.2, 0.1], coordinates, "Attention of sex=F")
    points = [
        collection for axes in figure.axes for collection in axes.collections if len(collection.get_offsets()) == 4
    ]
    assert len(points) == 3  # sagittal, coronal, axial
    assert all(np.argmax(collection.get_sizes()) == 3 for collection in points)
    np.testing.assert_allclose(points[-1].get_offsets()[-1], [30, 20])
    assert figure.get_suptitle() == "Attention of sex=F"


def test_plot_region_attention_wrong_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        plot_region_attention([0.1, 0.2, 0.3], np.zeros((3, 2)), "x")


def test_plot_network_bars_averages_by_network_and_hemisphere():
    names = [
        "7Networks_LH_Vis_1",
        "7Networks_LH_Vis_2",
        "7Networks_RH_Vis_1",
        "7Networks_LH_Default_Temp_1",
        "RH_Default_PFC_1",
    ]
    axes = plot_network_bars([1.0, 3.0, 5.0, 2.0, 4.0], names).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 2.0, 5.0, 4.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["visual", "default\nmode"]


def test_plot_network_bars_other_names_are_refused():
    with pytest.raises(ValueError, match="'Area_55b' is named neither"):
        plot_network_bars([1.0], ["Area_55b"])
    with pytest.raises(ValueError, match="2 region names"):
        plot_network_bars([1.0], ["7Networks_LH_Vis_1", "7Networks_LH_Vis_2"])
