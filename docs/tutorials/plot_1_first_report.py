"""
A first report
==============

One command makes a page of a folder of scans: it says what the input is, prepares and checks the scans, predicts every
subject by models that have not seen them, beside simple models, and explains. Here it runs on the shipped connectomes;
``INPUT`` may as well be a folder of fMRIPrep's or XCP-D's derivatives.
"""

# %%
# What would be done, and what it costs; in a terminal
# ``python -m training.report INPUT OUTPUT --task sex --dry-run``.
import tempfile
from pathlib import Path

import training
from training.report import main as report


SHIPPED = Path(training.__file__).parent / "demo_data" / "lemon-schaefer200"
work = Path(tempfile.mkdtemp())
command = [
    *("--input", str(SHIPPED / "fc.npz"), "--participants", str(SHIPPED / "participants.tsv")),
    *("--atlas", "schaefer-200", "--regions", str(SHIPPED / "rois.tsv")),
    *("--output", str(work / "report"), "--task", "sex", "--n_folds", "3", "--resamples", "200"),
]
report([*command, "--dry-run"])

# %%
# Do it. An interrupted report goes on with the same command.
report(command)

# %%
# The page is one file, ``report.html``. It begins with a sentence; everything in it is also in tables and JSON.
from training.reporting.results import Results
from training.reporting.tables import results_table_text, verdict


results = Results.load(work / "report" / "evaluation" / "metrics.json")
for name, task in results.tasks.items():
    print(f"{name}: {verdict(task)}\n")
    print(results_table_text(task))

# %%
# The predictions of subjects that no model had seen, one row a scan.
import pandas as pd
from matplotlib import pyplot
from sklearn.metrics import RocCurveDisplay


predictions = pd.read_csv(work / "report" / "evaluation" / "predictions.tsv", sep="\t")
figure, axes = pyplot.subplots(figsize=(5, 5))
for model in ("LCM", "linear, best", "confounds alone"):
    RocCurveDisplay.from_predictions(predictions["sex"] == "M", predictions[f"{model}: M"], name=model, ax=axes)
axes.plot([0, 1], [0, 1], linestyle="--", color="0.6")
axes.set_title("Sex from connectomes, subjects left out")
pyplot.show()

# %%
# The checkpoint of all subjects answers about other scans: see the page on scikit-learn, or ``training.predict``.
print(*sorted(path.name for path in (work / "report").iterdir()))
