"""The documentation site: the pages of this folder, the tutorials (run while it is built), and the code's docstrings.

`make docs` builds it into build/docs, without network.
"""

import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any


REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
# The tutorials run on shipped data alone.
os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

project = "Large Connectome Model"
author = copyright = "The large-connectome-model contributors"
release = version = version_of("large-connectome-model")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = [
    "tutorials/README.rst",
    "cluster/**",
    "results/**",
    "auto_tutorials/**.ipynb",
    "sg_execution_times.rst",
]
# Pages link to files of the repository, which are no pages of the site.
suppress_warnings = ["myst.xref_missing", "config.cache"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put types and names into single backticks
autodoc_typehints = "none"  # they are in the signature, and in words in the docstring
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "set_fit_request, set_score_request, set_predict_request",  # scikit-learn's own
}

html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"navigation_with_keys": True}


def _quiet_progress(gallery_conf: dict[str, Any], fname: str) -> None:
    """Before every tutorial: no progress bars in its output."""
    from datasets.utils import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()


def _as_rst(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written as Transformers' are: `name`s in backticks, lists below their sentence, **kwargs."""
    text = re.sub(r"(?<!`)(`[^`\n]+`)(?=\w)", r"\1\\ ", "\n".join(lines))
    text = re.sub(r"^(?=\S)(?!- )(.+)\n(?=- )", r"\1\n\n", text, flags=re.MULTILINE)
    lines[:] = re.sub(r"(?<![`\\*\w])\*\*(?=\w+\b(?!\*))", r"\\*\\*", text).split("\n")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _as_rst)


sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"\.py$",
    "download_all_examples": False,
    "remove_config_comments": True,
    "reset_modules": (_quiet_progress,),
    "abort_on_example_error": True,
    "show_memory": False,
    "within_subsection_order": "FileNameSortKey",
    "min_reported_time": 1000,
    "notebook_images": False,
}
