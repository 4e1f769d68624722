"""The studies behind docs/results.md: `python -m benchmarks.results --studies lemon` runs one and rewrites its table.

A study is a configuration `training/configs/studies/evaluate_NAME.yaml` of `training.evaluate`. What it found is kept
in `docs/results/NAME.json`, and the tables of docs/results.md are made of these, between `<!-- NAME -->` marks.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from training.arguments import command_line, parse_arguments
from training.evaluate import EvaluateArguments, evaluate
from training.files import write_json, write_text
from training.report import METRIC_TITLES, by_task, results_table_markdown
from training.summary import MEAN_OF_GROUPS


REPOSITORY = Path(__file__).resolve().parent.parent
STUDIES = REPOSITORY / "training" / "configs" / "studies"
RECORDS = REPOSITORY / "docs" / "results"
PAGE = REPOSITORY / "docs" / "results.md"
# What a table shows of a category and of a number.
METRICS = {"roc_auc": ("roc_auc", "accuracy", "balanced_accuracy"), "pearson_r": ("pearson_r", "r2", "mae")}


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    names = sorted(path.stem.removeprefix("evaluate_") for path in STUDIES.glob("evaluate_*.yaml"))
    parser = argparse.ArgumentParser(description="Run studies and write docs/results.md's tables.")
    parser.add_argument(
        "--studies", nargs="*", choices=names, default=[], help="studies to run; without any, tables are made anew"
    )
    for name in parser.parse_args(argv).studies:
        run(name)
    write_pages()


def run(name: str) -> None:
    """Evaluate one study, or finish one that was stopped, and keep its `metrics.json`."""
    arguments = parse_arguments(EvaluateArguments, ["--config", str(STUDIES / f"evaluate_{name}.yaml")])
    arguments.resume = Path(arguments.output).is_dir()
    write_json(RECORDS / f"{name}.json", evaluate(arguments))


def write_pages() -> None:
    """Put the tables of all finished studies between their marks in docs/results.md, and the summary in README.md."""
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))}
    summary = summary_table(records)
    text = PAGE.read_text(encoding="utf-8")
    for name, metrics in records.items():
        text = between_marks(text, name, study_tables(name, metrics))
    write_text(PAGE, between_marks(text, "summary", summary))
    readme = REPOSITORY / "README.md"
    write_text(readme, between_marks(readme.read_text(encoding="utf-8"), "summary", summary))


def between_marks(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- NAME -->` and the next `<!-- end -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(text):
        raise ValueError(f"The page has no place for {name}: add <!-- {name} --> and <!-- end --> on two lines.")
    return mark.sub(lambda found: f"{found[1]}{content}{found[2]}", text)


def summary_table(records: dict[str, dict[str, Any]]) -> str:
    """Markdown table of the headline metric of the studies with a linear baseline."""
    rows = ["| study | predicted | people | metric | LCM | linear on FC | linear on log FC |", "|" + " --- |" * 7]
    for metrics in records.values():
        for task, results in by_task(metrics).items():
            models, headline = results["models"], headline_metric(results)
            if "linear" not in models:
                continue
            scores = [
                f"{models[name][headline]['mean']:.3f} ± {models[name][headline]['std']:.3f}"
                if name in models
                else "-"
                for name in ("LCM", "linear", "linear, log FC")
            ]
            cells = [metrics["title"], task, str(results["n_subjects"]), METRIC_TITLES[headline], *scores]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def headline_metric(results: dict[str, Any]) -> str:
    """ROC AUC of a category, correlation of a number."""
    return "roc_auc" if "roc_auc" in results["models"]["LCM"] else "pearson_r"


def study_tables(name: str, metrics: dict[str, Any]) -> str:
    """Markdown of one study: per variable the table, the interval of LCM and how it was tested."""
    parts = []
    for task, results in by_task(metrics).items():
        headline = headline_metric(results)
        lcm = results["models"]["LCM"][headline]
        lines = [f"**{task}**, {results['n_subjects']} people, {results['n_scans']} scans:\n"]
        lines += [results_table_markdown(results, METRICS[headline]), ""]
        if lcm.get("interval"):
            low, high = lcm["interval"]
            lines.append(
                f"Pooled over folds: {lcm['pooled']:.3f}, 95 % interval {low:.3f} to {high:.3f}, permutation "
                f"p = {lcm['p_value']:.3f}."
            )
        if "site" in results["groups"]:
            within = results["groups"]["site"][MEAN_OF_GROUPS]["models"]
            scores = [
                f"{name} {score[headline]:.3f}" for name, score in within.items() if name not in ("majority", "mean")
            ]
            lines.append(f"\nMean within sites, weighted by people: {'; '.join(scores)}.")
        parts.append("\n".join(lines))
    checksums = metrics["protocol"]["split_checksum"]
    splits = ", ".join(checksums) if isinstance(checksums, list) else checksums
    # What a run that was taken up again needed before is not known.
    time = f", {metrics['seconds'] / 60:.0f} minutes" if metrics["seconds"] > 60 else ""
    parts.append(f"`python -m benchmarks.results --studies {name}` (splits {splits}{time})\n")
    return "\n\n".join(parts)


if __name__ == "__main__":
    command_line(main)()
