"""Which of two labels is positive: shown before training, chosen with one setting, the same in every step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_lcm import BEITokenizer, BEIVariable, LCMForSequenceClassification
from modeling_lcm.bei_vocabulary import comparison_first
from tests.training.conftest import SHORT, Study
from training import finetune, predict, pretrain
from training.data.cohort import Cohort, load_cohort
from training.data.labels import data_set_labels, label_lines, read_positive, with_positive
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate
from training.evaluation.tasks import make_task, pretrained_tasks
from training.preparation.arguments import MergeArguments, PrepareArguments
from training.preparation.build import prepare
from training.preparation.merging import merge
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import load_processor
from training.trainer.finetuning import finetune as finetune_stage
from training.trainer.vocabulary import task_tokenizer, task_variable


# --- which one it is ---


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["PD", "control"], ["control", "PD"]),
        (["ASD", "Healthy_Control"], ["Healthy_Control", "ASD"]),
        (["AD", "CN"], ["CN", "AD"]),
        (["HC", "MDD"], ["HC", "MDD"]),
        (["no", "yes"], ["no", "yes"]),
        (["ADHD", "TD"], ["TD", "ADHD"]),
        (["non-responder", "responder"], ["non-responder", "responder"]),
        (["F", "M"], ["F", "M"]),
        (["healthy", "control"], ["healthy", "control"]),
        (["elderly", "young"], ["elderly", "young"]),
        (["AD", "CN", "MCI"], ["AD", "CN", "MCI"]),
    ],
)
def test_a_comparison_group_comes_first_of_two(labels: list[str], order: list[str]) -> None:
    assert comparison_first(labels) == order
    records = [{"group": label} for label in labels]
    assert BEITokenizer.from_records(records, ["group"]).variables[0].labels == comparison_first(sorted(labels))


@given(st.lists(st.text("abcdefg", min_size=1, max_size=4), min_size=2, max_size=2, unique=True), st.integers(0, 1))
def test_the_chosen_label_is_the_last_and_is_saved(labels: list[str], position: int) -> None:
    variable = with_positive(BEIVariable("group", "categorical", labels), labels[position])
    assert variable.labels[1] == variable.positive == variable.positive_label == labels[position]
    kept = with_positive(BEIVariable("group", "categorical", labels), labels[position], keep_order=True)
    assert (kept.labels, kept.positive_label) == (labels, labels[position])
    assert BEITokenizer(variables=[kept]).variables == [kept]


def test_labels_that_cannot_be_positive() -> None:
    three = BEIVariable("group", "categorical", ["a", "b", "c"])
    assert three.positive_label is None
    with pytest.raises(ValueError, match=r"positive is 'a', but 'group' has the labels a, b, c: needed is one of two"):
        with_positive(three, "a")
    with pytest.raises(ValueError, match="positive 'x' is not one of its labels"):
        BEIVariable("group", "categorical", ["a", "b"], positive="x")
    with pytest.raises(ValueError, match=r"a continuous variable has no .* positive label"):
        BEIVariable("age", "continuous", positive="old")
    with pytest.raises(ValueError, match="positive is 'old', but 'age' is continuous"):
        FinetuneArguments(task="age", kind="continuous", positive="old")


def test_the_setting_names_a_variable_where_it_must() -> None:
    labels = {"sex": ["F", "M"], "group": ["HC", "PD"], "twin": ["F", "no"]}
    assert read_positive(["pd", "sex=F"], labels) == {"group": "PD", "sex": "F"}
    with pytest.raises(ValueError, match=r"several variables have this label; give VARIABLE=LABEL \(sex: F, M; twin"):
        read_positive(["F"], labels)
    with pytest.raises(ValueError, match=r"'group=AD', but no variable has this label; .*\(group: HC, PD\)"):
        read_positive(["group=AD"], labels)


def test_lines_count_subjects_of_every_label() -> None:
    table = pd.DataFrame({"subject_id": ["a", "a", "b", "c", "d"], "group": ["PD", "PD", "HC", None, "PD"]})
    variables = [BEIVariable("group", "categorical", ["HC", "PD"]), BEIVariable("age", "continuous")]
    assert label_lines(variables, table) == [
        "group, subjects: HC 1, PD 2 (positive); 1 without a label. Another positive label: --positive LABEL"
    ]
    table["age"] = [1.5, 1.5, 2, 3, 4]
    (line,) = data_set_labels(table, {"group": "HC"})
    assert line.startswith("group, subjects: PD 2, HC 1 (positive)")


# --- in every step ---


def run_finetune(
    dataset: Path, pretrained: Path, output: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[str, LCMForSequenceClassification, BEIVariable]:
    """Output of the script, the model and the variable that it saved."""
    given = f"--data {dataset} --checkpoint {pretrained} --task group --epochs 1 --batch_size 8 --no_progress"
    finetune.main([*given.split(), "--output", str(output), *flags])
    checkpoint = output / "checkpoint"
    model = LCMForSequenceClassification.from_pretrained(checkpoint)
    return capsys.readouterr().out, model, load_processor(str(checkpoint)).tokenizer.task_variable


def test_finetune_shows_the_labels_and_saves_the_choice(
    dataset: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, model, variable = run_finetune(dataset, pretrained, tmp_path / "default", capsys)
    first = text.splitlines()[0]
    assert first == "group, subjects: A 12, B 12 (positive). Another positive label: --positive LABEL"
    assert model.config.id2label == {0: "A", 1: "B"}
    text, model, variable = run_finetune(dataset, pretrained, tmp_path / "chosen", capsys, "--positive", "a")
    assert text.splitlines()[0].startswith("group, subjects: B 12, A 12 (positive)")
    assert model.config.id2label == {0: "B", 1: "A"}
    assert (variable.labels, variable.positive) == (["B", "A"], "A")
    predict.main(
        f"--checkpoint {tmp_path / 'chosen' / 'checkpoint'} --data {dataset} --output {tmp_path / 'p.tsv'}".split()
    )
    assert "Positive of two labels: group=A" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "p.tsv", sep="\t")
    assert table.columns[2:5].tolist() == ["group", "group=B", "group=A"]


def test_a_pretrained_task_keeps_its_tokens(
    cohort: Cohort, pretrained: Path, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    tokenizer = load_processor(str(pretrained)).tokenizer
    settings = finetune_arguments(task="sex", positive="f")
    variable = task_tokenizer(tokenizer, cohort, settings).task_variable
    assert (variable.labels, variable.positive_label) == (["F", "M"], "F")
    model, processor, _ = finetune_stage(cohort, replace(settings, epochs=1))
    assert model.config.id2label == {0: "F", 1: "M"}
    assert processor.tokenizer.task_variable.positive == "F"
    # The scores speak of the same label, whatever the order of the tokens.
    assert make_task(cohort, settings, tokenizer.variables[0]).labels == ("M", "F")
    assert make_task(cohort, replace(settings, positive=None), tokenizer.variables[0]).labels == ("F", "M")


def test_the_order_of_labels_and_the_data_set_decide_in_turn(cohort: Cohort) -> None:
    def positive(declared: dict[str, str], **settings: Any) -> str | None:
        arguments = FinetuneArguments(task="group", **settings)
        return task_variable(cohort.table, arguments, None, declared).positive_label

    assert positive({}) == "B"
    assert positive({"group": "A"}) == "A"
    assert positive({"group": "A"}, labels=["A", "B"]) == "B"
    assert positive({"group": "A"}, labels=["A", "B"], positive="A") == "A"
    assert positive({"group": "nobody"}) == "B"
    with pytest.raises(ValueError, match="positive is 'C', but 'group' has the labels A, B"):
        positive({}, positive="C")


def test_pretraining_takes_a_label_per_variable(
    dataset: Path, cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--data {dataset} --output {tmp_path / 'run'} --categorical sex group --positive sex=F group=A --epochs 1"
    small = "--hidden_size 16 --num_hidden_layers 2 --num_attention_heads 2 --intermediate_size 16 --no_progress"
    pretrain.main(f"{given} {small}".split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sex, subjects: M 12, F 12 (positive). Another positive label: --positive VARIABLE=LABEL"
    assert lines[1].startswith("group, subjects: B 12, A 12 (positive)")
    saved = load_processor(str(tmp_path / "run" / "checkpoint")).tokenizer.variables
    assert [variable.positive for variable in saved] == ["F", "A", None]
    tasks = pretrained_tasks(cohort, PretrainArguments(categorical=["sex", "group"], positive=["group=A"]), ["group"])
    assert tasks[0].labels == ("B", "A")


def test_a_vocabulary_with_more_labels_than_the_cohort(cohort: Cohort, tmp_path: Path) -> None:
    group = BEIVariable("group", "categorical", ["not applicable", "B", "A"])
    BEITokenizer(variables=[group]).save_pretrained(tmp_path)
    settings = PretrainArguments(vocabulary=str(tmp_path))
    assert pretrained_tasks(cohort, settings)[0].labels == ("B", "A")
    assert pretrained_tasks(cohort, replace(settings, positive=["group=B"]))[0].labels == ("A", "B")
    cohort.table["group"] = [*["not applicable"] * 4, *cohort.table["group"][4:]]
    with pytest.raises(ValueError, match="positive is 'B', but 'group' has 3 labels in the tested cohort"):
        pretrained_tasks(cohort, replace(settings, positive=["group=B"]))


def test_evaluation_scores_the_chosen_label(
    evaluate_arguments: Callable[..., EvaluateArguments], capsys: pytest.CaptureFixture[str]
) -> None:
    for positive in ("A", "B"):
        arguments = evaluate_arguments(positive=[positive])
        arguments.output += positive
        results = evaluate(arguments)
        (metrics,) = results.tasks.values()
        output, other = Path(arguments.output), "AB".replace(positive, "")
        first = capsys.readouterr().out.splitlines()[0]
        assert f"group, subjects: {other} 12, {positive} 12 (positive)" in first
        assert metrics.protocol["labels"] == [other, positive]
        assert metrics.protocol["positive"] == positive
        assert f"({positive} is positive)" in (output / "results.md").read_text()
        checkpoint = output / "fold_0" / "checkpoint"
        assert load_processor(str(checkpoint)).tokenizer.task_variable.positive == positive
        table = pd.read_csv(output / "predictions.tsv", sep="\t")
        is_found = table[f"LCM: {positive}"] > table[f"LCM: {other}"]
        for fold in range(2):
            scores = {name: values.per_fold[fold] for name, values in metrics.models["LCM"].items()}
            here = table["fold"] == fold
            assert scores["sensitivity"] == pytest.approx(is_found[here & (table["group"] == positive)].mean())
            assert scores["specificity"] == pytest.approx((~is_found)[here & (table["group"] == other)].mean())
    with pytest.raises(ValueError, match="positive is 'C', but 'group' has the labels A, B"):
        evaluate(evaluate_arguments(positive=["group=C"]))


def test_prepare_keeps_the_choice_with_the_data_set(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    given = {"connectivity": str(study.folder / "fc.npz"), "parquet": False}
    with pytest.raises(ValueError, match=r"positive is 'C', but no variable has this label"):
        prepare(prepare_arguments(**given, positive=["C"]))
    assert not (tmp_path / "dataset").exists()
    folder = prepare(prepare_arguments(**given, positive=["group=A", "sex=F"]))
    cohort = load_cohort(folder)
    assert cohort.positive == {"group": "A", "sex": "F"}
    lines = json.loads((folder / "quality.json").read_text())["labels"]
    assert "group, subjects: B 12, A 12 (positive). Another positive label: --positive VARIABLE=LABEL" in lines
    settings = FinetuneArguments(**SHORT, task="group")
    assert make_task(cohort, settings).labels == ("B", "A")
    # Two cohorts that mean different labels are not merged without a word.
    second = prepare(prepare_arguments(**given, output=str(tmp_path / "second"), positive=["group=B"]))
    with pytest.raises(ValueError, match="disagree on the positive label of 'group', 'A' and 'B'"):
        merge(MergeArguments(inputs=[str(folder), str(second)], output=str(tmp_path / "merged"), parquet=False))
    third = prepare(prepare_arguments(**given, output=str(tmp_path / "third")))
    (merged,) = merge(MergeArguments(inputs=[str(folder), str(third)], output=str(tmp_path / "both"), parquet=False))
    assert load_cohort(merged).positive == {"group": "A", "sex": "F"}
