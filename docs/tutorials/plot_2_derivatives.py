"""
From a folder of derivatives to one data set
============================================

fMRIPrep and XCP-D write one folder per subject. This page writes such a folder, as XCP-D would, of 24 shipped
connectomes, and prepares it: every scan is read, matched with the table of phenotypes, checked, and stored.
"""

# %%
# The folder. Yours is there already; this is what the shipped connectomes look like in XCP-D's layout.
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.atlases import region_names
from modeling_lcm.connectivity import connectivity_from_triangle
import training


SHIPPED = Path(training.__file__).parent / "demo_data" / "lemon-schaefer200"
work = Path(tempfile.mkdtemp())
derivatives = work / "xcp_d"
table = pd.read_csv(SHIPPED / "participants.tsv", sep="\t", dtype={"participant_id": str}).head(24)
table["participant_id"] = "sub-" + table["participant_id"].str.replace(r"\W|sub-", "", regex=True)
with np.load(SHIPPED / "fc.npz") as stored:
    connectivity = connectivity_from_triangle(stored["fc_triu"][:24], triangle="upper")
names = region_names("schaefer-200")
for subject, matrix in zip(table["participant_id"], connectivity, strict=True):
    func = derivatives / subject / "func"
    func.mkdir(parents=True)
    stem = f"{subject}_task-rest_space-MNI152NLin2009cAsym_seg-Schaefer200_stat-pearsoncorrelation_relmat.tsv"
    pd.DataFrame(matrix, index=names, columns=names).to_csv(func / stem, sep="\t", index_label="Node")
description = {"Name": "XCP-D", "GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.0"}]}
(derivatives / "dataset_description.json").write_text(json.dumps(description))
table[["participant_id", "age", "sex", "cohort"]].to_csv(derivatives / "participants.tsv", sep="\t", index=False)

# %%
# One command prepares it, in a terminal as
# ``python -m training.prepare --bids xcp_d --atlas schaefer-200 --output data``.
from training.prepare import main as prepare


prepare(["--bids", str(derivatives), "--atlas", "schaefer-200", "--output", str(work / "data")])

# %%
# The result is a folder that ``datasets`` reads, with a quality report for subjects to look at.
from training.data.cohort import load_cohort


cohort = load_cohort(work / "data")
print(len(cohort), "scans,", cohort.num_regions, "regions")
cohort.table[["subject_id", "age", "sex", "cohort", "qc_mean_fc", "qc_homotopic"]].head()

# %%
# ``qc_homotopic`` says how high left and right counterparts rank among all edges: 0.5 is chance, and real scans whose
# regions are in the right order have far more.
print(f"homotopic order: {cohort.table['qc_homotopic'].min():.2f} to {cohort.table['qc_homotopic'].max():.2f}")

# %%
# What does not fit is refused in a sentence, before anything is written.
try:
    prepare(["--bids", str(derivatives), "--atlas", "gordon-333", "--output", str(work / "other")])
except SystemExit as stopped:
    print("exit code", stopped.code)
