"""Whatever is wrong with the input: one clear line (or tyro's box) that names the cause and what
helps, exit status 2, no traceback, and nothing written. And what is unusual but right is taken."""

import json
import os
import shutil
from dataclasses import fields

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import quick, run_script, words
from scripts import ROOT, SCRIPTS, load_script, rows_of_dataset
from toy import Toy, play, save

# What is tested here is the same in all scripts (test_scripts.py sees to it): one stands for all
# where an input is not about what a script has of its own.
ONE = "cql"


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Starts a script in tmp_path, which has to refuse its input and say all that is `named`."""
    monkeypatch.chdir(tmp_path)

    def check(line: list[str], *named: str, script: str = ONE) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # forget what the making of the input has printed
        with pytest.raises(SystemExit) as stop:  # anything else would be a traceback
            load_script(script).main([*map(str, line)])
        message = capsys.readouterr().err
        assert stop.value.code == 2
        message = message.replace(f"{tmp_path}{os.sep}", "")
        for text in named:
            assert str(text) in message
        if "full helptext" not in message:  # else it is tyro's box
            assert len(message.splitlines()) == 1 and message.startswith(f"{script}.py: ")
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return message

    return check


# --- Where the dataset is -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["nowhere.hdf5", "nowhere.h5", "./nowhere", "nowhere/data.npz"])
def test_no_such_file(refused, path):
    """It is plain that a file is meant: nothing is said of names of datasets."""
    message = refused(quick(ONE, dataset=path), f"--dataset {path}: no such file")
    assert "name" not in message


def test_no_such_name(refused, monkeypatch, tmp_path):
    """The message of benchmarks/data/names.py, whose tests say what else there is."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    refused(quick(ONE, dataset="antmaze-huge-v9"), "--dataset antmaze-huge-v9: no such file, ")
    refused(quick(ONE, dataset=300 * "x"), "--dataset xxx")


def test_a_script_alone_in_a_folder(tmp_path):
    """Without benchmarks/ beside it names of datasets mean nothing. As a user sees it: nothing but
    one line, and status 2 for the shell."""
    shutil.copy(ROOT / f"{ONE}.py", tmp_path)
    shown = run_script(tmp_path / f"{ONE}.py", "--dataset", "antmaze-umaze-v2", cwd=tmp_path)
    assert shown.status == 2 and shown.stdout == ""
    [message] = shown.stderr.splitlines()
    reason = "no such file, and names of datasets need the folder benchmarks/ of this project"
    assert message == f"{ONE}.py: --dataset antmaze-umaze-v2: {reason} beside the script"
    assert [path.name for path in tmp_path.iterdir()] == [f"{ONE}.py"]


def test_a_folder_as_dataset(refused, tmp_path):
    refused(quick(ONE, dataset=tmp_path), f"--dataset {tmp_path}: is a folder")


@pytest.mark.parametrize("more", [["b.hdf5"], ["b.hdf5", "c.hdf5", "--seed=1"]])
def test_several_files_as_dataset(refused, more):
    """As a shell makes of *.hdf5: how they become one."""
    files = ["a.hdf5", *(word for word in more if word.endswith("5"))]
    how = f"python -m benchmarks.data.convert join {' '.join(files)}"
    refused(["--dataset", "a.hdf5", *more], "--dataset takes one file", how)


# --- What the file holds --------------------------------------------------------------------------


def test_not_hdf5(refused, tmp_path):
    (tmp_path / "text.hdf5").write_text("not HDF5")
    refused(quick(ONE, dataset="text.hdf5"), "--dataset text.hdf5: cannot be read as HDF5")


@pytest.mark.parametrize(
    "name, kind", [("a.npz", "ogbench"), ("a.npy", "adroit"), ("a.pkl", "adroit")]
)
def test_a_file_of_another_format_names_its_converter(refused, tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"something else")
    how = f"python -m benchmarks.data.convert {kind} "
    refused(quick(ONE, dataset=name), "cannot be read as HDF5", how)


@pytest.mark.parametrize(
    "group, kind",
    [("episode_0/observations", "minari ID"), ("data/demo_0/obs", "robomimic raw.hdf5")],
)
def test_a_layout_of_others_names_its_converter(refused, tmp_path, group, kind):
    with h5py.File(tmp_path / "raw.hdf5", "w") as file:
        file[group] = np.zeros((3, 2))
    line = quick(ONE, dataset="raw.hdf5")
    refused(line, "--dataset raw.hdf5", f"python -m benchmarks.data.convert {kind}")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_hdf5(refused, tmp_path, toy_file, share):
    content = toy_file.read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(content[: int(share * len(content))])
    refused(quick(ONE, dataset="cut.hdf5"), "--dataset cut.hdf5: cannot be read as HDF5")


def test_damaged_hdf5(refused, tmp_path, toy_data):
    """The structure is whole, the compressed content is not."""
    with h5py.File(tmp_path / "damaged.hdf5", "w") as file:
        for key, array in toy_data.items():
            file.create_dataset(key, data=array, compression="gzip")
        chunk = file["observations"].id.get_chunk_info(0)
    with open(tmp_path / "damaged.hdf5", "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    refused(quick(ONE, dataset="damaged.hdf5"), "--dataset damaged.hdf5: cannot be read as HDF5")


BAD_ARRAYS = {
    "missing": lambda array: None,
    "shorter": lambda array: array[:-1],
    "empty": lambda array: array[:0],
    "NaN": lambda array: np.where(np.arange(array.size).reshape(array.shape) == 7, np.nan, array),
    "inf": lambda array: np.where(np.arange(array.size).reshape(array.shape) == 7, np.inf, array),
    "strings": lambda array: array.astype("S8"),
    "variable strings": lambda array: array.astype("S8").astype(object),
    "complex": lambda array: array.astype(np.complex64),
    "compound": lambda array: np.zeros(array.shape, [("a", "f4"), ("b", "f4")]),
    "scalar": lambda array: np.float32(0),
    "scalar string": lambda array: "text",
    "without content": lambda array: h5py.Empty("f4"),
    "one axis more": lambda array: array[..., None, None],
    "transposed": lambda array: array.T if array.ndim > 1 else array[None],
}


REQUIRED = ["observations", "actions", "rewards", "terminals"]


@pytest.mark.parametrize("fault", BAD_ARRAYS)
@pytest.mark.parametrize("key", REQUIRED)
def test_bad_array(refused, tmp_path, toy_data, key, fault):
    array = BAD_ARRAYS[fault](toy_data[key])
    data = toy_data | {key: array}
    if array is None:
        del data[key]
    save(tmp_path / "bad.hdf5", data)
    where = (
        f"--dataset bad.hdf5: has no {key}, but " if fault == "missing" else "--dataset bad.hdf5: "
    )
    named = "no rows" if (key, fault) == ("rewards", "empty") else key
    refused(quick(ONE, dataset="bad.hdf5"), where, named)


@pytest.mark.parametrize("fault", ["shorter", "NaN", "strings", "one axis more"])
@pytest.mark.parametrize("key", ["timeouts", "next_observations"])
def test_bad_optional_array(refused, tmp_path, toy_data, key, fault):
    save(tmp_path / "bad.hdf5", toy_data | {key: BAD_ARRAYS[fault](toy_data[key])})
    refused(quick(ONE, dataset="bad.hdf5"), "--dataset bad.hdf5: ", key)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e300])
@pytest.mark.parametrize("key", [*REQUIRED, "timeouts", "next_observations"])
def test_what_is_not_finite_is_found(refused, tmp_path, toy_data, key, value):
    """Also what is inf only in float32; the row is told."""
    array = toy_data[key].astype(np.float64)
    array[[7, 30]] = value
    save(tmp_path / "bad.hdf5", toy_data | {key: array})
    refused(quick(ONE, dataset="bad.hdf5"), f"--dataset bad.hdf5: {key} has NaN or inf in row 7\n")


def test_group_instead_of_array(refused, tmp_path, toy_data):
    path = save(tmp_path / "bad.hdf5", toy_data)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards/inner"] = toy_data["rewards"]
    refused(quick(ONE, dataset=path), "bad.hdf5: rewards is not an array of numbers")


def test_images_in_the_dataset(refused, tmp_path, toy_data):
    images = np.zeros((len(toy_data["rewards"]), 8, 8, 3), np.uint8)
    save(tmp_path / "images.hdf5", toy_data | {"observations": images})
    refused(quick(ONE, dataset="images.hdf5"), "images as observations are not supported")


def test_no_episode_end(refused, tmp_path, toy_data):
    zeros = np.zeros_like(toy_data["terminals"])
    save(tmp_path / "endless.hdf5", toy_data | {"terminals": zeros, "timeouts": zeros})
    remedy = "mark where episodes end in terminals or timeouts"
    refused(quick(ONE, dataset="endless.hdf5"), "endless.hdf5: has no whole episode", remedy)


@pytest.mark.parametrize(
    "scores, reason",
    [
        ({"ref_min_score": 5.0}, "5 and 1; the first must be below the second"),
        ({"ref_max_score": np.nan}, "the first must be below the second"),
        ({"ref_max_score": np.inf}, "the first must be below the second"),
        ({"ref_min_score": "low"}, "not two numbers"),
        ({"ref_max_score": np.ones(2)}, "not two numbers"),
    ],
)
def test_bad_reference_scores(refused, tmp_path, toy_data, scores, reason):
    save(tmp_path / "t.hdf5", toy_data, **scores)
    refused(quick(ONE, dataset="t.hdf5"), "--dataset t.hdf5: ref_min_score and ref_max", reason)


def test_attributes_of_others(tmp_path, toy_data):
    """What h5py cannot read does no harm, unless it is the run's."""
    path = save(tmp_path / "t.hdf5", toy_data, env_id="toy:Toy-v0", ref_min_score=-3)
    with h5py.File(path, "r+") as file:
        h5py.h5a.create(file.id, b"note", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
        file.attrs["env_kwargs"] = np.bytes_("{}")  # as some programs write texts
    _, attributes = load_script(ONE).read_dataset(path)
    assert attributes == {"env_id": "toy:Toy-v0", "env_kwargs": "{}", "ref_min_score": -3}


LAYOUTS = {
    "columns": lambda array: array.reshape(len(array), -1),  # (N, 1) where (N,) is usual
    "no columns": lambda array: array[:, 0] if array.shape[1:] == (1,) else array,
    "wide floats": lambda array: array.astype(np.float64),
    "whole numbers": lambda array: array.astype(int) if array.ndim == 1 else array,
    "truth values": lambda array: array != 0 if set(np.unique(array)) <= {0, 1} else array,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_mean_the_same(tmp_path, toy_file, toy_data, layout):
    data = {key: LAYOUTS[layout](array) for key, array in toy_data.items()}
    rows = [load(path) for path in (toy_file, save(tmp_path / "other.hdf5", data))]
    torch.testing.assert_close(*rows)  # actions are rescaled in the file's precision


def load(path, env_id="toy:Toy-v0"):
    """The rows of a file, read for an environment or the file's own."""
    module = load_script(ONE)
    args = module.Args(dataset=str(path), env_id=env_id)
    data, attributes = module.read_dataset(path)
    return rows_of_dataset(module, args, data, module.make_env(args, attributes))


# --- Dataset and environment ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["observations", "actions", "next_observations"])
def test_size_does_not_fit_the_environment(refused, tmp_path, toy_data, key):
    wider = np.concatenate([toy_data[key], toy_data[key][:, :1]], 1)
    save(tmp_path / "wide.hdf5", toy_data | {key: wider})
    shape = f"{key} has the shape {wider.shape}"
    refused(quick(ONE, dataset="wide.hdf5"), "--dataset wide.hdf5", shape, "Toy-v0", "--env-id")


@pytest.mark.parametrize("beyond", [1.000001, 1.01, -1.01, 40.0])
def test_actions_outside_the_box_are_clipped(tmp_path, toy_data, beyond):
    """As in the authors' code; and not up to the edge, for the sake of an atanh."""
    data = toy_data | {"actions": toy_data["actions"].copy()}
    data["actions"][7] = beyond
    before, after = (load(save(tmp_path / "outside.hdf5", x)) for x in (toy_data, data))
    [row] = np.flatnonzero(before[:, 2] != after[:, 2])
    assert after[row, 2] == pytest.approx(np.sign(beyond) * 0.99999)


@pytest.mark.parametrize("low, high", [(0.0, 4.0), (-3.0, -1.0)])
def test_another_box_is_rescaled(tmp_path, low, high):
    """In the file the environment's own numbers, in the script [-1, 1], in data and environment."""
    kwargs = {"low": low, "high": high}
    data = play(gym.make("toy:Toy-v0", **kwargs))
    assert data["actions"].min() >= low and data["actions"].max() > high - 0.1
    attributes = {"env_id": "toy:Toy-v0", "env_kwargs": kwargs}
    path = save(tmp_path / "box.hdf5", data, **attributes)
    obs, actions, _, next_obs, *_ = load(path, env_id="").numpy().T[[0, 2, 3, 4]]
    # The toy moves by 0.4 times the push in [-1, 1], whatever the box is called.
    np.testing.assert_allclose(next_obs - obs, 0.4 * actions, atol=1e-4)
    module = load_script(ONE)
    _, attributes = module.read_dataset(path)
    env = module.make_env(module.Args(dataset=str(path)), attributes)
    env.reset(seed=0)
    np.testing.assert_allclose(env.step(np.array([0.5], np.float32))[0][1], 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "env_id",
    ["Nowhere-v0", "toy:Nowhere-v0", "no_module:Toy-v0", "toy:Toy-v7", "a:b:c", ":", "a b"],
)
def test_unknown_environment(refused, toy_file, env_id):
    line = quick(ONE, dataset=toy_file, env_id=env_id)
    refused(line, f"--env-id {env_id}: ", "give a gymnasium id, or module:id")


def test_no_environment_named(refused, toy_file):
    refused(quick(ONE, dataset=toy_file, env_id=None), "names no environment", "give --env-id")


def test_attributes_are_no_json(refused, tmp_path, toy_data):
    save(tmp_path / "t.hdf5", toy_data, env_id="toy:Toy-v0", env_kwargs="no JSON")
    refused(quick(ONE, dataset="t.hdf5", env_id=None), "env_kwargs is not JSON")


def test_errors_of_an_environment_of_ones_own_are_shown_in_full(tmp_path, toy_data):
    """Its author needs the traceback."""
    attributes = {"env_id": "toy:Toy-v0", "env_kwargs": {"error": "RuntimeError"}}
    path = save(tmp_path / "t.hdf5", toy_data, **attributes)
    with pytest.raises(RuntimeError, match="no such simulator"):
        load_script(ONE).main(quick(ONE, dataset=path, env_id=None, run_dir=tmp_path / "run"))


class Spaces(Toy):
    """A Toy with other spaces."""

    def __init__(self, observations=None, actions=None):
        super().__init__()
        self.observation_space = observations or self.observation_space
        self.action_space = actions or self.action_space


BOX = gym.spaces.Box
SPACES = {  # spaces -> what is said of them
    "discrete": ({"actions": gym.spaces.Discrete(2)}, "its actions are Discrete(2), not a box"),
    "two axes": ({"actions": BOX(-1, 1, (2, 2))}, "actions have the shape (2, 2), not one axis"),
    "no axis": ({"actions": BOX(-1, 1, ())}, "actions have the shape (), not one axis"),
    "unbounded": ({"actions": BOX(-np.inf, 1, (1,))}, "its actions have no bounds"),
    "a point": ({"actions": BOX(np.float32([-1, 2]), np.float32([1, 2]))}, "leave no room"),
    "images": ({"observations": BOX(0, 255, (8, 8, 3))}, "images as observations are not"),
    "lists": ({"observations": gym.spaces.Sequence(BOX(-1, 1, (2,)))}, "cannot be flattened"),
}


@pytest.mark.parametrize("kind", SPACES)
def test_spaces_that_are_not_supported(refused, toy_file, kind):
    """Which they are, and why not."""
    kwargs, reason = SPACES[kind]
    env_id = f"Spaces-{kind.replace(' ', '-')}-v0"
    if env_id not in gym.registry:
        gym.register(env_id, Spaces, kwargs=kwargs)
    refused(quick(ONE, dataset=toy_file, env_id=env_id), f"--env-id {env_id}: ", reason)


# --- Flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [["--nonsense"], ["--seed", "x"], ["--seed", "1e3"], ["word"]])
def test_what_tyro_refuses(refused, line):
    refused(line, line[-1], "full helptext")


@pytest.mark.parametrize(
    "name, value",
    [
        ("gamma", 1.0),
        ("tau", 0.0),
        ("offline_share", 1.1),
        ("offline_steps", -1),
        ("critic_lr", -0.1),
        ("actor_hidden", (8, 0)),
    ],
)
def test_a_value_out_of_range_is_an_error_of_the_command_line(
    refused, toy_file, script, name, value
):
    """tyro's box, with the flag and its limit; test_agent.py has all limits."""
    line = quick(script, dataset=toy_file) + words(**{name: value})
    named = f"--{name.replace('_', '-')}: must be "
    refused(line, named, "full helptext", script=script)


def test_a_value_out_of_range_beside_a_named_dataset(refused):
    """Whatever the settings of its row are."""
    refused(["--dataset", "antmaze-umaze-v2", "--tau", "2"], "--tau: must be ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_without_cuda(refused, toy_file):
    refused(quick(ONE, dataset=toy_file, device="cuda"), "--device cuda: there is no CUDA here")


def test_help_names_every_flag(script, tmp_path, monkeypatch, capsys):
    """With the defaults of the dataset's row: those that the run would have."""
    monkeypatch.chdir(tmp_path)
    module = load_script(script)
    with pytest.raises(SystemExit) as stop:
        module.main(["--dataset", "kitchen-mixed-v0", "--help"])
    shown = capsys.readouterr()
    assert stop.value.code == 0 and shown.err == ""
    for field in fields(module.Args):
        assert f"--{field.name.replace('_', '-')}" in shown.out
    assert f"(default: {module.SETTINGS['kitchen']['online_steps']})" in shown.out
    assert not any(tmp_path.iterdir())


# --- The folder of a run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_data):
    """A folder with toy.hdf5 and a finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    path, module = save(folder / "toy.hdf5", toy_data), load_script(ONE)
    few = dict(offline_steps=20, online_steps=10, eval_every_online=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_curves", lambda folder: None)
        module.main(quick(ONE, dataset=path, run_dir=folder / "run", **few))
    return folder


@pytest.fixture
def old_run(finished, tmp_path, refused):
    """A copy of it in tmp_path: the folder run, made from toy.hdf5."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    record["settings"]["dataset"] = str(tmp_path / "toy.hdf5")
    (tmp_path / "run" / "args.json").write_text(json.dumps(record))
    return tmp_path / "run"


def test_folder_that_holds_a_run(refused, old_run):
    line = quick(ONE, dataset="toy.hdf5", run_dir="run")
    refused(line, "--run-dir run: holds a run; give another folder", "--resume run")


def test_default_folder_is_protected_too(refused, old_run):
    folder = old_run.parent / "runs" / f"{ONE}-toy-s0"
    folder.parent.mkdir()
    old_run.rename(folder)
    refused(quick(ONE, dataset="toy.hdf5"), os.path.join("runs", f"{ONE}-toy-s0"), "holds a run")


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_folder_that_cannot_be(refused, tmp_path, toy_file, run_dir):
    """Under a file even root cannot make a folder."""
    (tmp_path / "file").write_text("")
    refused(quick(ONE, dataset=toy_file, run_dir=run_dir), f"--run-dir {run_dir}: ")


FLAGS = pytest.mark.parametrize("flag", ["--resume", "--pretrained"])


@FLAGS
@pytest.mark.parametrize("folder", ["nowhere", ".", "toy.hdf5"])
def test_the_folder_of_no_run(refused, old_run, flag, folder):
    problem = "no such folder" if folder == "nowhere" else "is not the folder of a run"
    refused([flag, folder], f"{flag} {folder}: {problem}")


@FLAGS
@pytest.mark.parametrize("in_run", [False, True])
def test_an_empty_folder_name(refused, old_run, monkeypatch, flag, in_run):
    """Of an empty variable, say: it is neither a new run nor the one that the shell is in."""
    if in_run:
        monkeypatch.chdir(old_run)
    refused([flag, ""], f"{flag}: ")
    refused([f"{flag}="], f"{flag}: ")


@FLAGS
@pytest.mark.parametrize(
    "content", [b"", b'{"script": "', b"[]", b"{}", b"null", b"\xff\xfe"], ids=repr
)
def test_damaged_settings(refused, old_run, flag, content):
    (old_run / "args.json").write_bytes(content)
    refused([flag, "run"], f"{flag} run: is not the folder of a run")


@FLAGS
def test_the_run_of_another_script(refused, old_run, flag):
    """Also one with other settings, which cannot read those of the run."""
    for script in SCRIPTS:
        if script != ONE:
            named = f"{flag} run: was made by {ONE}.py; use that"
            refused([flag, "run"], named, script=script)


@FLAGS
def test_another_dataset_than_before(refused, old_run, toy_data, flag):
    save(old_run.parent / "toy.hdf5", toy_data | {"rewards": toy_data["rewards"] * 2})
    refused([flag, "run"], f"{flag} run: ", "toy.hdf5 is not the file", "--dataset")


@FLAGS
def test_the_dataset_is_gone(refused, old_run, flag):
    (old_run.parent / "toy.hdf5").unlink()
    refused([flag, "run"], "--dataset", "toy.hdf5: no such file")


@pytest.mark.parametrize(
    "extra, reason",
    [
        (["--seed", "1"], "keeps the settings of a run; seed cannot change"),
        (["--gamma=0.5"], "keeps the settings of a run; gamma cannot change"),
        (["--infinite-horizon"], "keeps the settings of a run; infinite_horizon cannot change"),
        (["--run-dir", "other"], "keeps the settings of a run; run_dir cannot change"),
        (["--online_steps", "7"], "can become longer, not shorter"),
        (["--offline-steps=7"], "can become longer, not shorter"),
        (["--offline-steps=700"], "--offline-steps: fine-tuning has begun"),
    ],
)
def test_resume_beside_other_flags(refused, old_run, extra, reason):
    refused(["--resume", "run", *extra], reason)
    refused([*extra, "--resume=run"], reason)


@pytest.mark.parametrize("extra", [["--gamma=0.5"], ["--offline-steps=7", "--reward-bias=-1"]])
def test_pretrained_with_other_settings(refused, old_run, extra):
    """Those that pre-training depends on."""
    names = [word.partition("=")[0].strip("-").replace("-", "_") for word in extra]
    named = f"--pretrained run: {', '.join(names)} must stay as in that run"
    refused(["--pretrained", "run", *extra], named)


def test_pretrained_that_has_not_got_that_far(refused, old_run):
    (old_run / "pretrained.pt").unlink()
    refused(["--pretrained", "run"], "--pretrained run: has not finished")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_resume_on_a_device_that_is_not_there(refused, old_run):
    refused(["--resume", "run", "--device", "cuda"], "--device cuda: there is no CUDA here")
