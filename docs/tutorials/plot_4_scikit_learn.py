"""
LCM as a scikit-learn estimator
===============================

``LCMClassifier`` and ``LCMRegressor`` take connectomes as arrays and work in scikit-learn's pipelines and
cross-validation. They are fitted in closed form, in seconds.
"""

# %%
# Connectomes as an array ``(scans, regions, regions)``, and what is to be predicted.
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.connectivity import connectivity_from_triangle
import training


SHIPPED = Path(training.__file__).parent / "demo_data" / "lemon-schaefer200"
table = pd.read_csv(SHIPPED / "participants.tsv", sep="\t")
with np.load(SHIPPED / "fc.npz") as stored:
    connectivity = connectivity_from_triangle(stored["fc_triu"], triangle="upper")
print(connectivity.shape)

# %%
# Cross-validation by subject. The groups are given, even where every subject has one scan: with two there would be
# nothing to remember.
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

from modeling_lcm import LCMClassifier


folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
given = {"groups": table["participant_id"], "cv": folds, "scoring": "roc_auc"}
scores = cross_val_score(LCMClassifier(), connectivity, table["sex"], **given)
print(f"LCM, sex: ROC AUC {scores.mean():.2f} (folds {scores.min():.2f} to {scores.max():.2f})")

# %%
# The model to beat: logistic regression on the edges, on the same folds, its penalty chosen within them.
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


edges = connectivity[:, *np.triu_indices(200, 1)]
logistic = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
linear = GridSearchCV(logistic, {"logisticregression__C": [1e-5, 1e-4, 1e-3, 1e-2]}, cv=3, scoring="roc_auc")
scores = cross_val_score(linear, edges, table["sex"], **given)
print(f"linear model, sex: ROC AUC {scores.mean():.2f} (folds {scores.min():.2f} to {scores.max():.2f})")

# %%
# A fitted estimator saves an ordinary checkpoint.
import tempfile

from modeling_lcm import LCMRegressor


folder = tempfile.mkdtemp()
regressor = LCMRegressor().fit(connectivity[:120], table["age"][:120])
error = np.abs(regressor.predict(connectivity[120:]) - table["age"][120:]).mean()
print(f"age of the other {len(table) - 120} subjects: mean absolute error {error:.1f} years")
regressor.save_pretrained(folder)

# %%
# It answers through the pipeline like any other: with limits, since it knows the scans that it was fitted on.
from transformers import pipeline


answer = pipeline("connectome-classification", model=folder)
answer(connectivity[130])
