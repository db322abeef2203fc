"""How much of each script the tests run, in the processes that they start, too.

    python tests/covered.py [ARGUMENTS OF PYTEST]        without any: those files that run scripts

What a process had run that was killed is not known, and on a full disk there is no place for what
was measured, either: those tests are left out. Prints a table with the lines that nothing ran.
Exit status 1: a test failed, or of some script less than LEAST per cent were run.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import coverage
from scripts import ROOT, SCRIPTS

LEAST = 95
FILES = [f"tests/test_{name}.py" for name in ("run", "cli", "losses", "resume", "trouble")]
DEFAULT = ["-q", "-n", "2", "-k", "not full_disk", *FILES]
CONFIG = """
[run]
data_file = {folder}/data
parallel = true
concurrency = multiprocessing, thread
patch = subprocess, _exit
include = {scripts}

[paths]
copies =
    {root}
    */test_alone_in_an_empty_folder_?
"""


def measure(line: list[str], folder: Path) -> bool:
    """Runs pytest and prints the table; whether all passed, and enough was run of every script."""
    config = folder / "coveragerc"
    names = ", ".join(f"*/{name}.py" for name in SCRIPTS)
    config.write_text(CONFIG.format(folder=folder, scripts=names, root=ROOT))
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", *line]
    passed = subprocess.run(command, cwd=ROOT).returncode == 0
    measured = coverage.Coverage(config_file=str(config))
    measured.combine()
    files = [str(ROOT / f"{name}.py") for name in SCRIPTS]
    measured.report(files, show_missing=True)
    shares = [measured.report([file], file=open(os.devnull, "w")) for file in files]
    return passed and min(shares) >= LEAST


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return int(not measure(argv or DEFAULT, Path(folder)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
