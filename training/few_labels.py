"""The few-label study: `python -m training.few_labels --data runs/open --output runs/few_labels`."""

from pathlib import Path

from .command_line.cli import command, hide_bars_of_files
from .storage.files import claim, write_text
from .trainer.open_arguments import FewLabelsArguments


@command(FewLabelsArguments)
def main(arguments: FewLabelsArguments) -> None:
    """Command line."""
    with claim(arguments.output) as output:
        _study(arguments, output)


def _study(arguments: FewLabelsArguments, output: Path) -> None:
    import pandas as pd

    from .evaluation.few_labels import as_markdown, figure, load_jobs, run_job, summarise
    from .reporting.plain import write_table
    from .trainer.open_heads import load_pool

    hide_bars_of_files()
    pool = load_pool(arguments.data, arguments.recipe)
    rows = []
    for job in load_jobs(arguments.jobs):
        rows += list(run_job(pool, job, arguments.labels, arguments.draws, arguments.seed))
        print(as_markdown(summarise(pd.DataFrame([row for row in rows if row["job"] == job["name"]]))), flush=True)
    found = pd.DataFrame(rows)
    summary = summarise(found)
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "scores.tsv", found, decimals=4)
    write_text(output / "few_labels.md", as_markdown(summary))
    figure(summary).savefig(output / "few_labels.png", dpi=110)
    print(f"Written to {output}")


if __name__ == "__main__":
    main()
