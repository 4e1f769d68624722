"""What an installation holds beside modeling_lcm: the commands, as the package `large_connectome_model`.

`training/` becomes that package, and `hub_cards/` and `conversion/` lie in it, because no name as common as `training`
may get into site-packages. What they import of each other is written anew accordingly. An editable installation gets a
package that leads to the clone instead.
"""

import re
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


PACKAGE = "large_connectome_model"
FOLDERS = {
    "training": Path(PACKAGE),
    "hub_cards": Path(PACKAGE, "hub_cards"),
    "conversion": Path(PACKAGE, "conversion"),
}
LEFT_OUT = (
    "*/__pycache__/*",
    "training/configs/studies/*",  # they run in a clone, whose pages they write
    "training/studies.py",
    "training/reporting/studies.py",
    "*.safetensors",  # weights have licences of their own, and so has what describes them
    "*/lcm-open*/*",
)
IMPORT = re.compile(rf"^( *from )({'|'.join(FOLDERS)})\b", re.MULTILINE)
CLONE = {
    "__init__.py": '"""The clone, by the name that an installation has."""\n\n__path__ += {folders!r}\n',
    "__main__.py": '"""The command `lcm`, as the clone has it."""\n\nfrom training.__main__ import main\n\n\n'
    'if __name__ == "__main__":\n    main()\n',
}


class WheelHook(BuildHookInterface):
    """Adds the package to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Choose the files.

        Args:
            version (`str`): "editable", or "standard" for a wheel to give away.
            build_data (`dict`): gets source and place of every file.
        """
        self.scratch = TemporaryDirectory()
        root, scratch = Path(self.root), Path(self.scratch.name)
        if version == "editable":
            folders = [str(root / "training"), str(root)]
            for name, text in CLONE.items():
                (scratch / name).write_text(text.format(folders=folders), encoding="utf-8")
                build_data["force_include_editable"][str(scratch / name)] = f"{PACKAGE}/{name}"
            return
        for folder, target in FOLDERS.items():
            for path in sorted((root / folder).rglob("*")):
                inside = path.relative_to(root).as_posix()
                if path.is_file() and not any(fnmatch(inside, pattern) for pattern in LEFT_OUT):
                    place = str(target / path.relative_to(root / folder))
                    build_data["force_include"][str(_with_its_imports(path, scratch / place))] = place

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was written for the wheel."""
        self.scratch.cleanup()


def _with_its_imports(path: Path, copy: Path) -> Path:
    """A file, or a copy of a module whose imports name the package."""
    if path.suffix != ".py":
        return path
    text = path.read_text(encoding="utf-8")

    def moved(found: re.Match) -> str:
        return f"{found[1]}{'.'.join(FOLDERS[found[2]].parts)}"

    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(IMPORT.sub(moved, text), encoding="utf-8")
    return copy
