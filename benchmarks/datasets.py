"""D4RL's names of datasets: where their files are, where they come from, their reference scores.

The package d4rl has the addresses and scores in a module that needs nothing. It is found without
importing the package, whose __init__ wants gym and mujoco-py.
"""

import importlib.util
import os
from pathlib import Path


def d4rl_file(name: str) -> Path:
    """A file of the package d4rl. Raises: ModuleNotFoundError with the line that installs it."""
    spec = importlib.util.find_spec("d4rl")
    if spec is None:
        line = "pip install --no-deps -r requirements-d4rl.txt"
        raise ModuleNotFoundError(f"the package d4rl is missing: {line}")
    return Path(spec.origin).parent / name


def folder() -> Path:
    """D4RL's cache: $D4RL_DATASET_DIR, else ~/.d4rl/datasets. Nothing is created here."""
    return Path(os.environ.get("D4RL_DATASET_DIR", "~/.d4rl/datasets")).expanduser()
