"""HTML pages that need nothing else: one look for all (`templates/page.html`), with the pictures inside."""

import base64
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title (`str`): its heading.
        texts (`Sequence[str]`): paragraphs.
        warnings (`Sequence[str]`): paragraphs that must not be missed.
        figures (`Mapping[str, Figure]`): pictures by caption; a figure's label is its alternative text.
        tables (`Mapping[str, Sequence[Sequence[str]]]`): by caption, the first row being the header.
    """

    title: str
    texts: Sequence[str] = ()
    warnings: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)


def render_page(template: str, **context: Any) -> str:
    """Fill in a template of `training/templates`; what is put in is escaped, and the filter `png` embeds a figure.

    Args:
        template: file name, such as `report.html`.
        **context: what the template shows; pictures are matplotlib figures.

    Returns:
        The page.
    """
    return _environment().get_template(template).render(**context)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["png"] = _as_base64_png
    return environment


def _as_base64_png(figure: Figure, dots_per_inch: int = 140) -> str:
    """The figure as PNG in base64, cropped to what is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, bbox_inches="tight", facecolor="white")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
