"""The scikit-learn estimators: on the shipped connectomes, as scikit-learn's tools use them, and on bad input."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nilearn.connectome import sym_matrix_to_vec
from peft import PeftModel
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from modeling_lcm.connectivity import connectivity_from_triangle
from tests.conftest import REPOSITORY
from tests.training.conftest import REGIONS, Study
from training.estimator import LCMClassifier, LCMRegressor, as_matrices


LEMON = REPOSITORY / "training" / "demo_data" / "lemon-schaefer200"
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
QUICK: dict[str, Any] = {"epochs": 1, "settings": SMALL}


@pytest.fixture(scope="module")
def lemon() -> tuple[np.ndarray, np.ndarray]:
    """Every second region of the shipped subjects, `(168, 100, 100)`, and who is young or elderly."""
    with np.load(LEMON / "fc.npz") as archive:
        ids, edges = archive["participant_id"], archive["fc_triu"]
    people = pd.read_csv(LEMON / "participants.tsv", sep="\t", index_col="participant_id")
    matrices = connectivity_from_triangle(edges.astype(np.float32))[:, ::2, ::2]
    return matrices, people.loc[ids, "cohort"].to_numpy()


@pytest.fixture
def fc(study: Study) -> np.ndarray:
    """The made-up study's connectomes, `(24, 10, 10)`."""
    return study.connectivity.copy()


@pytest.fixture
def group(study: Study) -> np.ndarray:
    """The planted group of its subjects, "A" or "B"."""
    return study.participants["group"].to_numpy(dtype=str)


def test_young_or_elderly_is_found_in_cross_validation(lemon: tuple[np.ndarray, np.ndarray]) -> None:
    matrices, cohort = lemon
    model = LCMClassifier(epochs=5, learning_rate=3e-3, settings=SMALL)
    folds = StratifiedGroupKFold(2, shuffle=True, random_state=0)
    scores = cross_val_score(
        model, matrices, cohort, groups=np.arange(len(cohort)), cv=folds, scoring="roc_auc", error_score="raise"
    )
    assert len(scores) == 2
    assert scores.min() > 0.8


def test_a_number_is_predicted_in_its_unit(fc: np.ndarray, study: Study) -> None:
    score = study.participants["score"].to_numpy()
    train, test = np.arange(16), np.arange(16, 24)
    model = LCMRegressor(epochs=25, learning_rate=1e-2, mixup=0.0, settings=SMALL | {"dropout": 0.0})
    model.fit(fc[train], score[train])
    assert model.predict(fc[test]).shape == (8,)
    assert model.score(fc[test], score[test]) > 0.5


def test_parameters_and_clones() -> None:
    model = LCMClassifier("folder", epochs=3, adapter="lora", settings={"weight_decay": 0.2})
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.get_params()["checkpoint"] == "folder"
    assert copy.set_params(epochs=4).epochs == 4
    assert model.epochs == 3
    assert "epochs=3" in repr(model)
    with pytest.raises(NotFittedError):
        model.predict(np.eye(3)[None])


# Those of scikit-learn's checks that fit no made-up table, whose columns make no connectome.
@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
@pytest.mark.parametrize("kind", [LCMClassifier, LCMRegressor])
def test_scikit_learns_own_checks(check: str, kind: type) -> None:
    getattr(estimator_checks, check)(kind.__name__, kind())


def test_the_same_seed_gives_the_same_model(fc: np.ndarray, group: np.ndarray) -> None:
    model = LCMClassifier(**QUICK)
    first = model.fit(fc, group).predict_proba(fc)
    np.testing.assert_array_equal(clone(model).fit(fc, group).predict_proba(fc), first)
    assert not np.allclose(clone(model).set_params(random_state=1).fit(fc, group).predict_proba(fc), first)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(fc), first)
    np.testing.assert_allclose(first.sum(1), 1)
    assert model.n_features_in_ == REGIONS * (REGIONS - 1) // 2


def test_nilearns_vectors_equal_matrices(fc: np.ndarray, group: np.ndarray) -> None:
    vectors = sym_matrix_to_vec(fc, discard_diagonal=True)
    np.testing.assert_allclose(as_matrices(vectors), fc, atol=1e-6)
    of_matrices = LCMClassifier(**QUICK).fit(fc, group)
    of_vectors = LCMClassifier(**QUICK).fit(vectors, group)
    expected = of_matrices.predict_proba(fc)
    np.testing.assert_array_equal(of_vectors.predict_proba(vectors), expected)
    np.testing.assert_array_equal(of_vectors.predict_proba(fc), expected)
    upper = fc[:, *np.triu_indices(REGIONS, k=1)]
    np.testing.assert_allclose(as_matrices(upper, "upper"), fc, atol=1e-6)


def test_vectors_in_another_order_are_noticed(lemon: tuple[np.ndarray, np.ndarray]) -> None:
    matrices = lemon[0][:3]
    regions = matrices.shape[-1]
    upper, lower = matrices[:, *np.triu_indices(regions, k=1)], matrices[:, *np.tril_indices(regions, k=-1)]
    with pytest.raises(ValueError, match="set triangle='upper'"):
        as_matrices(upper)
    with pytest.raises(ValueError, match="set triangle='lower'"):
        as_matrices(lower, "upper")
    np.testing.assert_array_equal(as_matrices(lower), as_matrices(upper, "upper"))


def test_a_checkpoint_is_fine_tuned_with_an_adapter(fc: np.ndarray, group: np.ndarray, pretrained: Path) -> None:
    model = LCMClassifier(str(pretrained), epochs=8, learning_rate=1e-2, mixup=0.0, lora_rank=2, random_state=3)
    model.fit(fc, group)
    assert isinstance(model.model_, PeftModel)
    assert model.processor_.tokenizer.task == "target"
    assert model.processor_.feature_extractor.atlas == "made-up-10"
    assert model.score(fc, group) > 0.8


def test_a_pretrained_variable_keeps_its_tokens(fc: np.ndarray, study: Study, pretrained: Path) -> None:
    sex = study.participants["sex"].to_numpy(dtype=str)
    model = LCMClassifier(str(pretrained), epochs=1, task="sex", settings={"frozen_layers": 1}).fit(fc, sex)
    assert model.model_.config.num_task_tokens == 0
    assert model.predict_proba(fc).shape == (24, 2)
    with pytest.raises(ValueError, match="pretrained on 'sex' with the labels F, M"):
        clone(model).fit(fc, np.where(sex == "F", "female", "male"))


def test_classes_of_any_type(fc: np.ndarray, group: np.ndarray) -> None:
    for labels in (group == "B", np.where(group == "B", 10, 2), np.arange(24.0) % 3):
        model = LCMClassifier(**QUICK).fit(fc, labels)
        np.testing.assert_array_equal(model.classes_, np.unique(labels))
        assert model.predict_proba(fc).shape == (24, len(model.classes_))
        assert model.predict(fc).dtype == labels.dtype


def test_grid_search_with_groups_in_a_pipeline(fc: np.ndarray, group: np.ndarray) -> None:
    pipeline = make_pipeline(
        FunctionTransformer(sym_matrix_to_vec, kw_args={"discard_diagonal": True}), LCMClassifier()
    )
    pipeline.set_params(lcmclassifier__settings=SMALL, lcmclassifier__mixup=0.0)
    grid = {"lcmclassifier__epochs": [1, 12], "lcmclassifier__learning_rate": [1e-2]}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(2), error_score="raise")
    search.fit(fc, group, groups=np.arange(24) // 2)
    assert search.best_params_["lcmclassifier__epochs"] == 12
    assert search.predict(fc).shape == (24,)


@pytest.mark.parametrize("kind", [LCMClassifier, LCMRegressor])
def test_bad_input(kind: type, fc: np.ndarray, study: Study, pretrained: Path) -> None:
    target = study.participants["score" if kind is LCMRegressor else "group"].to_numpy()
    damaged, asymmetric, fisher = fc.copy(), fc.copy(), fc.copy()
    damaged[3, 1, 2] = np.nan
    asymmetric[0, 1, 2] += 0.5
    fisher[:, range(REGIONS), range(REGIONS)] = np.inf
    for connectivity, message in (
        (damaged, "Matrix 3 holds 1 NaN"),
        (asymmetric, "Matrix 0 is not symmetric"),
        (fisher, "Fisher's z"),
        (fc[:, :9], "needed is"),
        (np.zeros((24, 44)), "vectorised matrix"),
        (np.zeros(24), r"X has shape \(24,\)"),
        (fc[:5], "inconsistent numbers of samples"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**QUICK).fit(connectivity, target)
    with pytest.raises(ValueError, match=r"9 regions .* is for 10"):
        kind(str(pretrained), epochs=1).fit(fc[:, :9, :9], target)
    with pytest.raises(ValueError, match=r"9 regions .* is for 10"):
        kind(**QUICK).fit(fc, target).predict(fc[:, :9, :9])
    missing = pd.Series(target).where(np.arange(24) > 0).to_numpy()
    with pytest.raises(ValueError, match="1 values of y"):
        kind(**QUICK).fit(fc, missing)
    with pytest.raises(ValueError, match=r"one class|All values"):
        kind(**QUICK).fit(fc, np.repeat(target[:1], 24))
    with pytest.raises(ValueError, match="give a checkpoint"):
        kind(adapter="lora").fit(fc, target)
    with pytest.raises(ValueError, match="settings has epochs, wings"):
        kind(settings={"wings": 2, "epochs": 3}).fit(fc, target)
    with pytest.raises(ValueError, match="triangle must be"):
        kind(triangle="left").fit(fc, target)
