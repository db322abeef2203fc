"""Datasets by D4RL's names: found in its cache, downloaded whole or not at all, with its scores."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading

import gymnasium as gym
import h5py
import numpy as np
import pytest
from conftest import quick, read_events
from scripts import ROOT, load_script
from toy import play, save

from benchmarks import envs
from benchmarks.data import names

NAME, FILE = "hopper-medium-v2", "hopper_medium-v2.hdf5"  # D4RL's name and its file's
HAS_D4RL = importlib.util.find_spec("d4rl") is not None
needs_d4rl = pytest.mark.skipif(
    not HAS_D4RL, reason="pip install --no-deps -r requirements-d4rl.txt"
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    return folder


def tables_of(url: str) -> dict:
    """D4RL's tables with one name, at another address."""
    return dict(DATASET_URLS={NAME: url}, REF_MIN_SCORE={NAME: 0}, REF_MAX_SCORE={NAME: 1})


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A folder whose files a server on this machine gives out as those of D4RL's address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{FILE}"
        monkeypatch.setattr(names, "d4rl_tables", lambda: tables_of(url))
        yield folder
        server.shutdown()


@pytest.fixture(scope="module")
def hopper():
    """Data of the task, with next_observations left out as in D4RL's AntMaze."""
    data = play(gym.make(f"benchmarks.envs:{NAME}"), episodes=4)
    del data["next_observations"]
    return data


# --- Where a file is ------------------------------------------------------------------------------


@needs_d4rl
def test_found_in_the_cache(cache, hopper):
    cache.mkdir()
    save(cache / FILE, hopper)
    assert names.find(NAME)[0] == cache / FILE
    save(cache / f"{NAME}.hdf5", hopper)
    assert names.find(NAME)[0] == cache / f"{NAME}.hdf5", "what a conversion has made comes first"


def test_the_cache_is_d4rls(monkeypatch, tmp_path):
    monkeypatch.delenv("D4RL_DATASET_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names.folder() == tmp_path / ".d4rl" / "datasets"
    assert not names.folder().exists(), "asking creates nothing"


def test_the_hands_are_made_from_demonstrations(cache):
    with pytest.raises(OSError, match="benchmarks.data.convert adroit"):
        names.find("pen-binary-v0")
    cache.mkdir()
    save(cache / "pen-binary-v0.hdf5", {"rewards": np.zeros(1)})
    path, known = names.find("pen-binary-v0")
    assert path == cache / "pen-binary-v0.hdf5"
    assert known == {"env_id": "benchmarks.envs:pen-binary-v0"}, (
        "D4RL's scores are the dense task's"
    )


@needs_d4rl
@pytest.mark.parametrize(
    "name, near",
    [
        ("antmaze-lrge-diverse-v2", "antmaze-large-diverse-v2"),
        ("ANTMAZE-LARGE-DIVERSE-V2", "antmaze-large-diverse-v2"),
        ("kitchen-mixd-v0", "kitchen-mixed-v0"),
        ("pen-binary-v1", "pen-binary-v0"),
        ("hopper-medium", "hopper-medium-v2"),
        ("antmaze-umaze-v5", "antmaze-umaze-v2"),
        ("antmaze-umaze-v2.hdf5", "antmaze-umaze-v2"),
        ("/nowhere/door-binary-v0", "door-binary-v0"),
        ("foo", "-v"),
    ],
)
def test_an_unknown_name_lists_the_closest(cache, name, near):
    with pytest.raises(OSError, match=f"nor is it a name of D4RL's; the closest.*{near}"):
        names.find(name)
    assert not cache.exists()


def test_the_embedded_dataset(cache):
    """It lies beside the program, whatever is in D4RL's cache."""
    path, known = names.find("pointmaze")
    assert path == ROOT / "benchmarks" / "data" / "pointmaze.hdf5"
    with h5py.File(path) as file:
        assert names.attributes_of(file)["env_id"] == known["env_id"]
    assert not cache.exists()


def test_a_name_without_a_task_is_not_downloaded(cache, monkeypatch, hopper):
    tables, url = tables_of(""), "http://127.0.0.1:9/maze.hdf5"
    tables["DATASET_URLS"]["maze2d-umaze-v1"] = url
    monkeypatch.setattr(names, "d4rl_tables", lambda: tables)
    with pytest.raises(OSError, match="maze2d-umaze-v1 has no task here.*--env-id") as refusal:
        names.find("maze2d-umaze-v1")
    assert url in str(refusal.value) and not cache.exists()
    cache.mkdir()
    save(cache / "maze.hdf5", hopper)
    assert names.find("maze2d-umaze-v1") == (cache / "maze.hdf5", {}), "for an --env-id"


def test_dense_rewards_are_not_led_to_the_binary_task(cache, monkeypatch, hopper):
    """Neither before D4RL's data for the hands are there, nor then; the way to convert them is
    shown, with the file and the task."""
    tables, url = tables_of(""), "http://127.0.0.1:9/door_demos.hdf5"
    tables["DATASET_URLS"]["door-human-v1"] = url
    monkeypatch.setattr(names, "d4rl_tables", lambda: tables)
    command = f"python -m benchmarks.data.convert adroit {cache}/door_demos.hdf5 --task door"
    with pytest.raises(OSError, match="dense") as refusal:
        names.find("door-human-v1")
    assert f"put {url} into {cache}" in str(refusal.value) and command in str(refusal.value)
    assert "--env-id" not in str(refusal.value)
    cache.mkdir()
    save(cache / "door_demos.hdf5", hopper)
    with pytest.raises(OSError, match="dense.*give the file instead of the name") as refusal:
        names.find("door-human-v1")
    assert command in str(refusal.value)


def test_mazes_with_ends_out_of_step_are_refused(cache, hopper):
    cache.mkdir()
    path = save(cache / "antmaze-umaze-v0.hdf5", hopper)
    with pytest.raises(OSError, match=f"benchmarks.data.convert ends {path}"):
        names.find("antmaze-umaze-v0")


def test_without_d4rl_the_install_line_is_named(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps -r requirements-d4rl.txt"):
        names.find("antmaze-umaze-v2")
    cache.mkdir()
    for name in ("hopper-medium-v2", "door-binary-v0"):
        save(cache / f"{name}.hdf5", {"rewards": np.zeros(1)})
    with pytest.raises(ModuleNotFoundError, match="requirements-d4rl.txt"):
        names.find("hopper-medium-v2")  # its scores are there
    assert names.find("door-binary-v0")[1] == {"env_id": "benchmarks.envs:door-binary-v0"}


def test_a_mere_folder_of_that_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "d4rl").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="requirements-d4rl.txt"):
        names.d4rl_file("infos.py")


# --- What a name tells ----------------------------------------------------------------------------


@needs_d4rl
def test_every_name_of_d4rls_has_its_address_and_scores():
    urls = names.d4rl_tables()["DATASET_URLS"]
    for name in envs.NAMES:
        known = names.known(name)
        assert known["env_id"] == f"benchmarks.envs:{name}"
        if not name.endswith("-binary-v0"):
            assert (
                urls[name].startswith("http://") and known["ref_min_score"] < known["ref_max_score"]
            )
    antmaze, kitchen = names.known("antmaze-umaze-v2"), names.known("kitchen-mixed-v0")
    assert (antmaze["ref_min_score"], antmaze["ref_max_score"]) == (0, 1)
    assert (kitchen["ref_min_score"], kitchen["ref_max_score"]) == (0, 4)
    assert names.known("walker2d-expert-v2")["ref_max_score"] == pytest.approx(4592.3)
    # Scores of a task that is not here would be compared with returns of another.
    assert names.known("pen-cloned-v1") == {}


# --- Downloads ------------------------------------------------------------------------------------


def test_a_download_is_shown_and_kept(cache, served, hopper, capfd):
    save(served / FILE, hopper)
    path, _ = names.find(NAME)
    assert path == cache / FILE and path.read_bytes() == (served / FILE).read_bytes()
    assert [*cache.iterdir()] == [path], "nothing else is left"
    shown = "".join(capfd.readouterr())
    assert "http://127.0.0.1" in shown and "100%" in shown
    (served / FILE).unlink()
    assert names.find(NAME)[0] == path, "it is not asked for again"


@pytest.mark.parametrize("content", ["cut", "page", "empty", None])
def test_what_is_not_whole_is_not_kept(cache, served, hopper, content):
    whole = save(served / "whole.hdf5", hopper).read_bytes()
    kept = dict(cut=whole[: len(whole) // 2], page=b"<html>Not here</html>", empty=b"")
    if content:
        (served / FILE).write_bytes(kept[content])
    cache.mkdir()
    (cache / "other.hdf5").write_bytes(b"kept")
    with pytest.raises(OSError) as refusal:
        names.find(NAME)
    assert "http://127.0.0.1" in str(refusal.value) and str(cache) in str(refusal.value)
    assert [path.name for path in cache.iterdir()] == ["other.hdf5"]


def test_a_connection_that_breaks(cache, served, hopper, monkeypatch):
    """The server announces more than it sends: what came is thrown away."""
    save(served / FILE, hopper)
    send = http.server.SimpleHTTPRequestHandler.copyfile

    def break_off(self, source, target):
        target.write(source.read(1000))

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", break_off)
    with pytest.raises(OSError, match="could not be downloaded"):
        names.find(NAME)
    assert not [*cache.iterdir()]
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "copyfile", send)
    assert names.find(NAME)[0] == cache / FILE, "the next time it is begun again"


def test_offline(cache, monkeypatch):
    url = "http://127.0.0.1:9/data.hdf5"  # nobody answers there
    monkeypatch.setattr(names, "d4rl_tables", lambda: tables_of(url))
    with pytest.raises(OSError) as refusal:
        names.find(NAME)
    assert url in str(refusal.value) and str(cache) in str(refusal.value)


def test_a_cache_that_cannot_be_written(cache, served, hopper):
    save(served / FILE, hopper)
    cache.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=f"http://127.0.0.1.*could not be downloaded to {cache}.*try"):
        names.find(NAME)


def test_a_cache_that_is_read_only(cache, served, hopper, monkeypatch):
    """Whatever this program may do as the root user."""
    save(served / FILE, hopper)
    opened = open

    def refuse(path, mode="r", *words, **more):
        if "w" in mode and str(cache) in str(path):
            raise PermissionError(13, "Read-only file system")
        return opened(path, mode, *words, **more)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match=f"http://127.0.0.1.*Read-only.*{cache}"):
        names.find(NAME)


# --- Through a script -----------------------------------------------------------------------------


@pytest.fixture
def line(cache, hopper):
    """The command line of a quick run on D4RL's hopper by its name."""
    cache.mkdir()
    save(cache / FILE, hopper)
    return quick("cal_ql", dataset=NAME, env_id=None, eval_episodes=1, online_steps=1)


def scores(run_dir) -> tuple[float, float]:
    events = read_events(run_dir)
    return events["eval/score"][-1][1], events["eval/return"][-1][1]


@needs_d4rl
def test_a_name_has_its_task_and_its_scores(run_here, line, tmp_path, capsys):
    run_here("cal_ql", *line)
    assert "row 'defaults'" in capsys.readouterr().out
    score, total = scores(tmp_path / "runs" / f"cal_ql-{NAME}-s0")
    assert score == pytest.approx((total + 20.272305) / (3234.3 + 20.272305), rel=1e-4)
    run_here("cal_ql", "--resume", str(tmp_path / "runs" / f"cal_ql-{NAME}-s0"))


@needs_d4rl
def test_another_task_has_no_scores_of_d4rls(run_here, line, tmp_path):
    run_here("cal_ql", *line, "--env-id", "Hopper-v5", "--run-dir", "run")
    score, total = scores(tmp_path / "run")
    assert score == pytest.approx(total)


@needs_d4rl
def test_a_file_of_another_task_has_no_scores_of_d4rls(run_here, line, cache, hopper, tmp_path):
    """Even under D4RL's name: it says itself that it is none of D4RL's."""
    save(cache / FILE, hopper, env_id="Hopper-v5")
    run_here("cal_ql", *line, "--run-dir", "run")
    score, total = scores(tmp_path / "run")
    assert score == pytest.approx(total)


def test_a_path_has_the_task_of_its_name(run_here, hopper, tmp_path):
    """Unless the file says otherwise of itself."""
    rest = quick("cal_ql", env_id=None, eval_episodes=1, online_steps=1, run_dir="run")
    path = save(tmp_path / f"{NAME}.hdf5", hopper)
    run_here("cal_ql", "--dataset", str(path), *rest)
    score, total = scores(tmp_path / "run")
    assert score == pytest.approx(total), "that the data are D4RL's is not known"
    toy = play(gym.make("toy:Toy-v0"))
    path = save(tmp_path / "antmaze-mine.hdf5", toy, env_id="toy:Toy-v0")
    run_here("cal_ql", "--dataset", str(path), *rest[:-1], "--run-dir", "mine")


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_file_in_the_cache_is_named_and_kept(line, cache, monkeypatch, capsys, damage):
    content = (cache / FILE).read_bytes()
    content = content[:-100] if damage == "cut" else bytes(100) + content[100:]
    (cache / FILE).write_bytes(content)
    url = f"http://127.0.0.1:9/{FILE}"
    monkeypatch.setattr(names, "d4rl_tables", lambda: tables_of(url))
    monkeypatch.setattr(sys, "argv", ["cal_ql.py", *line])
    with pytest.raises(SystemExit) as stop:
        load_script("cal_ql").main()
    message = capsys.readouterr().err
    assert stop.value.code == 2 and str(cache / FILE) in message and "delete it" in message
    assert (cache / FILE).read_bytes() == content


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "kitchen-mixed-v0"])
def test_data_of_another_task_are_refused_with_both_shapes(
    line, cache, hopper, monkeypatch, capsys, name
):
    if name.startswith("antmaze") and not HAS_D4RL:
        pytest.skip("needs d4rl")
    save(cache / f"{name}.hdf5", hopper)
    monkeypatch.setattr(sys, "argv", ["cal_ql.py", *quick("cal_ql", dataset=name, env_id=None)])
    with pytest.raises(SystemExit):
        load_script("cal_ql").main()
    message = capsys.readouterr().err
    assert ", 11)" in message and {"a": ", 29)", "k": ", 60)"}[name[0]] in message


LOAD = r"""
import re, sys, time, types
import gymnasium as gym
import cal_ql

def memory(key):  # MB; getrusage would tell the peak of the process that started this one, too
    return int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6

args = cal_ql.Args(dataset=sys.argv[1], failure_reward=0.0, offline_share=float(sys.argv[2]))
env = types.SimpleNamespace(observation_space=gym.spaces.Box(-1, 1, (29,)))
env.env = types.SimpleNamespace(action_space=gym.spaces.Box(-1, 1, (8,)))
env.spec = types.SimpleNamespace(id="none", max_episode_steps=1000)
env.unwrapped = env
cal_ql.make_env = lambda args, attributes: env
before, began = memory("VmRSS"), time.monotonic()
task = cal_ql.load_task(args)
buffer = cal_ql.ReplayBuffer(args, task.rows, 29, 8, "cpu")
del task
print(time.monotonic() - began, memory("VmRSS") - before, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("offline_share", [0.5, -1])  # two buffers, a common one
def test_memory_and_time_of_a_large_dataset(tmp_path, offline_share):
    """A million transitions of AntMaze's size, as in D4RL."""
    n, rng = 1_000_000, np.random.default_rng(0)
    data = {
        key: rng.random((n, w), np.float32) for key, w in (("observations", 29), ("actions", 8))
    }
    data["rewards"] = (rng.random(n) < 0.01).astype(np.float32)
    data |= dict(terminals=data["rewards"] > 0, timeouts=np.arange(n) % 1001 == 1000)
    path = save(tmp_path / "large.hdf5", data)
    (tmp_path / "load.py").write_text(LOAD)
    line = [sys.executable, str(tmp_path / "load.py"), str(path), str(offline_share)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    path.unlink()
    seconds, loaded, peak = map(float, done.stdout.split())
    assert seconds < 10 and loaded <= 350 and peak <= 600, done.stdout
