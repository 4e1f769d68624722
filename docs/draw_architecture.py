"""Draw docs/architecture.svg from the imports: `python docs/draw_architecture.py`. Same code, same picture."""

import ast
import sys
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "architecture.svg"
PACKAGES = ("modeling_lcm", "training", "hub_cards", "conversion", "benchmarks")
COMMANDS = "commands"
# From above: a box may import what lies below it. Beside each box, where its middle is, in hundredths of the width.
ROWS: tuple[dict[str, int], ...] = (
    {"benchmarks": 12, COMMANDS: 44, "hub_cards": 67, "conversion": 89},
    {"first_report": 44},
    {"evaluation": 30, "explanation": 51, "preparation": 73},
    {"trainer": 18},
    {"data": 48},
    {"reporting": 48},
    {"storage": 30, "command_line": 66},
    {"modeling_lcm": 48},
)
SAYS = {
    "benchmarks": "speed, memory, Brainmarks",
    "hub_cards": "cards, publishing, the page",
    "conversion": "research code's weights",
    COMMANDS: "training.prepare, evaluate, ...",
    "first_report": "from a folder to one page",
    "evaluation": "folds, baselines, scores",
    "explanation": "what tokens and edges read",
    "preparation": "scans and tables to a data set",
    "trainer": "both stages, checkpoints, predictions",
    "data": "cohorts, folds, who is one subject",
    "reporting": "results, tables, figures, pages",
    "storage": "atomic writes, locks, checksums",
    "command_line": "settings, YAML, help, errors",
    "modeling_lcm": "model, tokenizer, processor, pipeline; also runs from the Hub",
}
WIDTH, ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 1000, 96, 200, 56, 16


def box_of(module: tuple[str, ...]) -> str:
    """The box that a module is drawn in."""
    if module[0] != "training" or len(module) == 1:
        return COMMANDS if module[0] == "training" else module[0]
    return module[1] if (REPOSITORY / "training" / module[1]).is_dir() else COMMANDS


def imports() -> set[tuple[str, str]]:
    """Which box imports from which, also inside functions."""
    found = set()
    for path in sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        module = path.relative_to(REPOSITORY).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in _targets(node, module):
                if target[0] in PACKAGES:
                    found.add((box_of(module), box_of(target)))
    return {(source, target) for source, target in found if source != target}


def _targets(node: ast.AST, module: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Modules that a statement imports, or whose names it does."""
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    # One dot is the file's own folder, every other one the next folder above.
    start = module[: len(module) - node.level] if node.level else ()
    base = start + tuple((node.module or "").split(".")) if node.module else start
    return [base if node.module else (*base, alias.name) for alias in node.names]


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without imports that lead where others lead as well, box by box."""

    def reach(start: str, without: tuple[str, str]) -> set[str]:
        found, left = set(), [start]
        while left:
            box = left.pop()
            new = {end for begin, end in edges if begin == box and (begin, end) != without} - found
            found |= new
            left += new
        return found

    return {edge for edge in edges if edge[1] not in reach(edge[0], edge)}


def draw(edges: set[tuple[str, str]]) -> str:
    """The picture, as SVG; colours follow the reader's light or dark page."""
    places: dict[str, tuple[float, float]] = {}
    for row, names in enumerate(ROWS):
        for name, middle in names.items():
            places[name] = (WIDTH * middle / 100, MARGIN + ROW * row + BOX_HEIGHT / 2)
    height = 2 * MARGIN + ROW * (len(ROWS) - 1) + BOX_HEIGHT
    lines = [_line(places[source], places[target]) for source, target in sorted(reduced(edges))]
    boxes = [part for name, place in places.items() for part in _box(name, place)]
    title = "Parts of the code, and which imports which: arrows point downwards."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            "<style>",
            "text{font-family:system-ui,sans-serif;text-anchor:middle;fill:#1a1a1a}.say{font-size:12px;fill:#444}",
            ".name{font-size:15px;font-weight:600}rect{fill:#eef4fa;stroke:#0072b2}path{stroke:#8a8a8a;fill:none}",
            "@media (prefers-color-scheme:dark){text{fill:#eee}.say{fill:#bbb}rect{fill:#16324a;stroke:#56b4e9}}",
            "</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8" fill="none"/></marker></defs>',
            *lines,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _line(source: tuple[float, float], target: tuple[float, float]) -> str:
    (x, y), (end_x, end_y) = source, target
    down = 1 if end_y > y else -1
    start, end = y + down * BOX_HEIGHT / 2, end_y - down * BOX_HEIGHT / 2
    late = start + (0.85 if end - start > 3 * ROW else 0.6) * (
        end - start
    )  # long lines go down beside the boxes first
    curve = f"M{x:g} {start:g}C{x:g} {late:g} {end_x:g} {late:g} {end_x:g} {end:g}"
    return f'<path d="{curve}" marker-end="url(#tip)"/>'


def _box(name: str, place: tuple[float, float]) -> list[str]:
    x, y = place
    width = max(BOX_WIDTH, 7.2 * len(SAYS[name]))
    return [
        f'<rect x="{x - width / 2:g}" y="{y - BOX_HEIGHT / 2:g}" width="{width:g}" height="{BOX_HEIGHT}" rx="6"/>',
        f'<text class="name" x="{x:g}" y="{y - 4:g}">{name}</text>',
        f'<text class="say" x="{x:g}" y="{y + 16:g}">{SAYS[name]}</text>',
    ]


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()), encoding="utf-8")
    sys.stdout.write(f"{PICTURE}\n")
