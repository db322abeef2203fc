"""Names of datasets: D4RL's and the embedded one's. Where their files are, where they come from,
their reference scores.

The package d4rl has the addresses and scores in a module that needs nothing. It is found without
importing the package, whose __init__ wants gym and mujoco-py.
"""

import contextlib
import difflib
import http.client
import importlib.util
import os
import re
import runpy
import socket
from pathlib import Path

import h5py

from benchmarks import envs

EMBEDDED = "pointmaze"  # the name of the dataset that lies beside this file
BINARY = "-binary-v0"  # how the names of the hands' tasks end, which D4RL has no data for
DENSE = r"(pen|door|relocate)-(human|cloned|expert)-v[01]"  # D4RL's data of the same hands


def d4rl_file(name: str) -> Path:
    """A file of the package d4rl. Raises: ModuleNotFoundError with the line that installs it."""
    spec = importlib.util.find_spec("d4rl")
    if spec is None or spec.origin is None:  # None: a mere folder of that name
        line = "pip install --no-deps -r requirements-d4rl.txt"
        raise ModuleNotFoundError(f"the package d4rl is missing: {line}")
    return Path(spec.origin).parent / name


def d4rl_tables() -> dict[str, dict]:
    """DATASET_URLS, REF_MIN_SCORE and REF_MAX_SCORE, each by the datasets' names."""
    return runpy.run_path(str(d4rl_file("infos.py")))


def folder() -> Path:
    """D4RL's cache: $D4RL_DATASET_DIR, else ~/.d4rl/datasets. Nothing is created here."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser()


def known(name: str) -> dict:
    """What is known of a dataset by its name: env_id of its task, which the scripts compare with
    --env-id, and D4RL's reference scores for that task alone, returns of a random policy and of an
    expert; nothing where there is no such task here.

    Raises: ModuleNotFoundError without the package d4rl, which has the scores.
    """
    if name == EMBEDDED:
        return {"env_id": "benchmarks.envs.pointmaze:PointMaze-v0"}
    if name not in envs.NAMES:
        return {}
    found = {"env_id": f"{envs.__name__}:{name}"}
    if not name.endswith(BINARY):
        tables = d4rl_tables()
        found["ref_min_score"] = tables["REF_MIN_SCORE"][name]
        found["ref_max_score"] = tables["REF_MAX_SCORE"][name]
    return found


def find(name: str) -> tuple[Path, dict]:
    """The file of a dataset's name and what is known of it. The file is the embedded one, or
    NAME.hdf5 or D4RL's own in D4RL's cache, downloaded into it where it is missing.

    Raises: OSError with what is missing and the remedy; ModuleNotFoundError without d4rl.
    """
    if name == EMBEDDED:
        return Path(__file__).parent / f"{EMBEDDED}.hdf5", known(name)
    path = folder() / f"{name}.hdf5"
    if not path.is_file():
        path = d4rls_own(name)
    if hand := re.fullmatch(DENSE, name):
        how = f"python -m benchmarks.data.convert adroit {path} --task {hand[1]}"
        reason = f"the rewards of {name} are dense, those of {hand[1]}{BINARY} are not"
        other = "for a task with dense rewards, give the file instead of the name, and --env-id"
        raise OSError(f"{reason}; `{how}` makes binary ones; {other}")
    if name.startswith("antmaze") and name.endswith("-v0"):
        how = f"mend it with `python -m benchmarks.data.convert ends {path}`"
        raise OSError(f"the timeouts of {name} are not where its episodes end; {how}")
    try:
        with h5py.File(path) as file:
            env_id = attributes_of(file).get("env_id")
    except OSError as error:
        raise OSError(f"{path} is damaged ({error}); delete it to have it made again") from error
    found = known(name)
    # Scores say something about the task that they belong to alone.
    return path, found if env_id in (None, found.get("env_id")) else {}


def d4rls_own(name: str) -> Path:
    """The file of that name in D4RL's cache under its own file name; one that has a task here is
    downloaded where it is missing. Raises: as find."""
    close = difflib.get_close_matches(Path(name).stem.lower(), [EMBEDDED, *envs.NAMES], cutoff=0)
    closest = f"the closest that have a task here: {', '.join(close)}"
    if name.endswith(BINARY) and name in envs.NAMES:
        how = f"python -m benchmarks.data.convert adroit FILES --task {name.split('-')[0]}"
        made = f"{folder() / name}.hdf5 is made"
        raise FileNotFoundError(f"{made} from AWAC's demonstrations by `{how}`")
    urls = d4rl_tables()["DATASET_URLS"] if Path(name).name == name else {}
    if name not in urls:
        raise FileNotFoundError(f"no such file, nor is it a name of D4RL's; {closest}")
    path = folder() / urls[name].rsplit("/", 1)[-1]
    if path.is_file():
        return path
    put = f"put {urls[name]} into {folder()}"
    if hand := re.fullmatch(DENSE, name):
        how = f"python -m benchmarks.data.convert adroit {path} --task {hand[1]}"
        reason = f"{name} has no task here, since its rewards are dense"
        raise FileNotFoundError(f"{reason}; {put}, and `{how}` makes those of {hand[1]}{BINARY}")
    if name not in envs.NAMES:
        own = "for an environment of yours whose rewards are the same"
        get = f"{own}, {put} and give --env-id"
        raise FileNotFoundError(f"{name} has no task here; {closest}; {get}")
    download(urls[name], path)
    return path


def attributes_of(file: h5py.File) -> dict:
    """Those of the file, texts as such: h5py gives those of one length as bytes."""
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in file.attrs.items()}


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
        with contextlib.suppress(OSError):
            part.unlink()
