"""A process that runs pieces of Python for the tests, with the Hub clients imported once.

The clients read their endpoint when they are imported, so they cannot run in the tests' own process. Each line of the
standard input is a job in JSON (`code`, or `module` with `argv`, and `environment`), each line of output an answer.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job and collect what it prints, its exit code, and the value it leaves in `result`."""
    out, err = io.StringIO(), io.StringIO()
    names: dict[str, Any] = {"__name__": "__job__"}
    code = 0
    for name, value in job.get("environment", {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "module" in job:
                importlib.import_module(job["module"]).main(job["argv"])
            else:
                exec(compile(job["code"], "<job>", "exec"), names)  # the tests' own code
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code, "result": names.get("result")}


def main() -> None:
    """Answer jobs until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever prints outside a job must not look like an answer
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
