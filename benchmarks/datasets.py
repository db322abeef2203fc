"""D4RL's names of datasets: where their files are, where they come from, their reference scores.

The package d4rl has the addresses and scores in a module that needs nothing. It is found without
importing the package, whose __init__ wants gym and mujoco-py.
"""

import difflib
import http.client
import importlib.util
import os
import runpy
import socket
from pathlib import Path

import h5py

from benchmarks import tasks

BINARY = "made from AWAC's demonstrations by `python -m benchmarks.convert adroit`"


def d4rl_file(name: str) -> Path:
    """A file of the package d4rl. Raises: ModuleNotFoundError with the line that installs it."""
    spec = importlib.util.find_spec("d4rl")
    if spec is None:
        line = "pip install --no-deps -r requirements-d4rl.txt"
        raise ModuleNotFoundError(f"the package d4rl is missing: {line}")
    return Path(spec.origin).parent / name


def d4rl_table(name: str) -> dict:
    """DATASET_URLS, REF_MIN_SCORE or REF_MAX_SCORE, by the datasets' names."""
    return runpy.run_path(str(d4rl_file("infos.py")))[name]


def folder() -> Path:
    """D4RL's cache: $D4RL_DATASET_DIR, else ~/.d4rl/datasets. Nothing is created here."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()


def known(name: str) -> dict:
    """What is known of a dataset by its name: env_id of its task, and where the package d4rl is
    installed its reference scores, returns of a random policy and of an expert; each if it has it.
    """
    found = {"env_id": f"{tasks.__name__}:{name}"} if name in tasks.NAMES else {}
    if found and importlib.util.find_spec("d4rl"):
        tables = dict(ref_min_score="REF_MIN_SCORE", ref_max_score="REF_MAX_SCORE")
        found |= {k: d4rl_table(v)[name] for k, v in tables.items() if name in d4rl_table(v)}
    return found


def find(name: str) -> tuple[Path, dict]:
    """The file of a dataset's name and what is known of it. The file is NAME.hdf5 or D4RL's own in
    D4RL's cache, downloaded into it where it is missing.

    Raises: OSError with what is missing and the remedy; ModuleNotFoundError without d4rl.
    """
    if (path := folder() / f"{name}.hdf5").is_file():
        return path, known(name)
    if name.endswith("-binary-v0") and name in tasks.NAMES:
        raise FileNotFoundError(f"{path} is {BINARY}")
    if Path(name).suffix or Path(name).name != name:
        raise FileNotFoundError("nor is it a name of D4RL's")
    urls = d4rl_table("DATASET_URLS")
    if name not in urls:
        close = difflib.get_close_matches(name, {*urls, *tasks.NAMES}, cutoff=0.3)
        closest = f"; the closest: {', '.join(close)}" if close else ""
        raise FileNotFoundError(f"nor is it a name of D4RL's{closest}")
    if name.startswith("antmaze") and not name.endswith("-v2"):
        remedy = "take v2, or `python -m benchmarks.convert ends` and the file that it makes"
        raise FileNotFoundError(f"the timeouts of {name} are not where its episodes end; {remedy}")
    path = folder() / urls[name].rsplit("/", 1)[-1]
    if not path.is_file():
        download(urls[name], path)
    return path, known(name)


def download(url: str, path: Path) -> None:
    """Into another name beside path, which it gets when it is a whole HDF5 file.

    Raises: OSError with the address and the folder.
    """
    from torch import hub  # takes a second, which only a download needs

    print(f"downloading {url} to {path}")
    part, before = path.with_name(f"{path.name}.{os.getpid()}.part"), socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(60)  # s without a byte
        hub.download_url_to_file(url, str(part))
        with h5py.File(part):  # a file that was cut short is refused here
            os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        remedy = f"try again, or put the file into {path.parent} yourself"
        raise OSError(f"{url} could not be downloaded to {path} ({error}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(before)
        part.unlink(missing_ok=True)
