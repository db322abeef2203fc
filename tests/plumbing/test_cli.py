"""Whatever is wrong with the input: one clear line (or tyro's box) that names it, exit status 2,
no traceback, and nothing written. And what is unusual but right is taken."""

import json
import os
import sys
from dataclasses import fields

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import online_rows, quick, run_script, words
from scripts import ROOT, SCRIPTS, load_script
from toy import Toy, play, save

# All scripts have the same Part II (test_scripts.py sees to it): one stands for all where the code
# under test lies there and an input is not about what a script has of its own.
ONE = "cql"


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Starts a script in tmp_path, which has to refuse its input and say `named`."""
    monkeypatch.chdir(tmp_path)

    def check(line: list[str], named: str, script: str = ONE) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # forget what the making of the input has printed
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *line])
        with pytest.raises(SystemExit) as stop:  # anything else would be a traceback
            load_script(script).main()
        message = "".join(capsys.readouterr())
        assert stop.value.code == 2
        assert named in message
        if "full helptext" not in message:  # else it is tyro's box
            assert message.splitlines()[-1].startswith(f"{script}.py: "), "more than one line"
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return message

    return check


# --- The dataset ----------------------------------------------------------------------------------


def test_no_such_file(refused, script):
    refused(quick(script, dataset="nowhere.hdf5"), "nowhere.hdf5", script)


def test_a_folder_as_dataset(refused, tmp_path):
    refused(quick(ONE, dataset=tmp_path), f"--dataset {tmp_path}")


def test_a_name_longer_than_names_may_be(refused):
    refused(quick(ONE, dataset=300 * "x"), "--dataset xxx")


def test_not_hdf5(refused, tmp_path):
    (tmp_path / "text.hdf5").write_text("not HDF5")
    refused(quick(ONE, dataset="text.hdf5"), "text.hdf5")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_truncated_hdf5(refused, tmp_path, toy_file, share):
    content = toy_file.read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(content[: int(share * len(content))])
    refused(quick(ONE, dataset="cut.hdf5"), "cut.hdf5")


def test_damaged_hdf5(refused, tmp_path, toy_data):
    """The structure is whole, the compressed content is not."""
    with h5py.File(tmp_path / "damaged.hdf5", "w") as file:
        for key, array in toy_data.items():
            file.create_dataset(key, data=array, compression="gzip")
        chunk = file["observations"].id.get_chunk_info(0)
    with open(tmp_path / "damaged.hdf5", "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes(chunk.size))
    refused(quick(ONE, dataset="damaged.hdf5"), "damaged.hdf5")


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
    "flattened": lambda array: array.reshape(-1) if array.ndim > 1 else array[None],
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_bad_array(refused, tmp_path, toy_data, key, fault):
    array = BAD_ARRAYS[fault](toy_data[key])
    data = toy_data | {key: array}
    if array is None:
        del data[key]
    save(tmp_path / "bad.hdf5", data)
    message = refused(quick(ONE, dataset="bad.hdf5"), "bad.hdf5")
    assert key in message


@pytest.mark.parametrize("fault", ["shorter", "NaN", "strings", "one axis more"])
@pytest.mark.parametrize("key", ["timeouts", "next_observations"])
def test_bad_optional_array(refused, tmp_path, toy_data, key, fault):
    save(tmp_path / "bad.hdf5", toy_data | {key: BAD_ARRAYS[fault](toy_data[key])})
    message = refused(quick(ONE, dataset="bad.hdf5"), "bad.hdf5")
    assert key in message


@pytest.mark.parametrize("key", ["observations", "rewards", "next_observations"])
def test_inf_after_conversion_to_float32(refused, tmp_path, toy_data, key):
    save(tmp_path / "bad.hdf5", toy_data | {key: toy_data[key].astype(np.float64) - 1e300})
    message = refused(quick(ONE, dataset="bad.hdf5"), "bad.hdf5")
    assert key in message


def test_all_arrays_empty(refused, tmp_path, toy_data):
    save(tmp_path / "bad.hdf5", {key: array[:0] for key, array in toy_data.items()})
    refused(quick(ONE, dataset="bad.hdf5"), "bad.hdf5")


def test_group_instead_of_array(refused, tmp_path, toy_data):
    path = save(tmp_path / "bad.hdf5", toy_data)
    with h5py.File(path, "r+") as file:
        del file["rewards"]
        file["rewards/inner"] = toy_data["rewards"]
    refused(quick(ONE, dataset=path), "bad.hdf5")


def test_no_episode_end(refused, tmp_path, toy_data):
    zeros = np.zeros_like(toy_data["terminals"])
    save(tmp_path / "endless.hdf5", toy_data | {"terminals": zeros, "timeouts": zeros})
    message = refused(quick(ONE, dataset="endless.hdf5"), "endless.hdf5")
    assert "terminals" in message and "timeouts" in message, "the remedy"


LAYOUTS = {
    "columns": lambda array: array.reshape(len(array), -1),  # (N, 1) where (N,) is usual
    "wide floats": lambda array: array.astype(np.float64),
    "whole numbers": lambda array: array.astype(int) if array.ndim == 1 else array,
    "truth values": lambda array: array != 0 if set(np.unique(array)) <= {0, 1} else array,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_mean_the_same(tmp_path, toy_file, toy_data, layout):
    module = load_script(ONE)
    args = module.Args(env_id="toy:Toy-v0")
    data = {key: LAYOUTS[layout](array) for key, array in toy_data.items()}
    rows = []
    for path in (toy_file, save(tmp_path / "other.hdf5", data)):
        stored, attributes = module.read_dataset(str(path))
        rows.append(module.load_episodes(args, stored, module.make_env(args, attributes)))
    torch.testing.assert_close(*rows)  # actions are rescaled in the file's precision


# --- Dataset and environment ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["observations", "actions", "next_observations"])
def test_size_does_not_fit_the_environment(refused, tmp_path, toy_data, key):
    wider = np.concatenate([toy_data[key], toy_data[key][:, :1]], 1)
    save(tmp_path / "wide.hdf5", toy_data | {key: wider})
    message = refused(quick(ONE, dataset="wide.hdf5"), "wide.hdf5")
    assert key in message


@pytest.mark.parametrize("beyond", [1.01, -1.01, 40.0])
def test_a_few_actions_outside_the_box_are_clipped(run_here, capsys, tmp_path, toy_data, beyond):
    """As in the authors' code, and said."""
    data = toy_data | {"actions": toy_data["actions"].copy()}
    data["actions"][7] = beyond
    path = save(tmp_path / "outside.hdf5", data)
    module = run_here(ONE, *quick(ONE, dataset=path, run_dir="run"))
    out = capsys.readouterr().out
    assert "outside.hdf5" in out and "clipped" in out and f"{1 / len(data['actions']):.2%}" in out
    args = module.Args(dataset=str(path), env_id="toy:Toy-v0")
    env = module.make_env(args, {})
    rows = [module.load_episodes(args, dict(x), env) for x in (toy_data, data)]
    assert rows[1][:, 2].abs().max() < 1
    others = np.flatnonzero(rows[0][:, 2] != rows[1][:, 2])
    assert len(others) == 1 and rows[1][others, 2] == pytest.approx(np.sign(beyond) * 0.99999)


def test_actions_in_other_units(refused, tmp_path, toy_data):
    save(tmp_path / "newtons.hdf5", toy_data | {"actions": 30 * toy_data["actions"]})
    message = refused(quick(ONE, dataset="newtons.hdf5"), "newtons.hdf5")
    assert "rescale" in message and "%" in message


def test_actions_at_the_edge_of_the_box(run_here, tmp_path, toy_data):
    """An edge that rounding has moved outwards is accepted, and stays within an atanh's reach."""
    data = toy_data | {"actions": toy_data["actions"].copy()}
    data["actions"][:3, 0] = 1.0, -1.0, 1.000001
    path = save(tmp_path / "edge.hdf5", data)
    module = run_here(ONE, *quick(ONE, dataset=path, run_dir="run"))
    args = module.Args(env_id="toy:Toy-v0")
    rows = module.load_episodes(args, data, module.make_env(args, {}))
    assert rows[:, 2].abs().max() < 1


@pytest.mark.parametrize("low, high", [(0.0, 4.0), (-3.0, -1.0)])
def test_another_box_is_rescaled(run_here, tmp_path, low, high):
    """In the file the environment's own numbers, in the script [-1, 1], in data and environment."""
    kwargs = {"low": low, "high": high}
    data = play(gym.make("toy:Toy-v0", **kwargs))
    assert data["actions"].min() >= low and data["actions"].max() > high - 0.1
    attributes = {"env_id": "toy:Toy-v0", "env_kwargs": kwargs}
    path = save(tmp_path / "box.hdf5", data, **attributes)
    module = run_here(ONE, *quick(ONE, dataset=path, env_id=None, run_dir="run"))

    stored, attributes = module.read_dataset(str(path))
    args = module.Args(dataset=str(path))
    env = module.make_env(args, attributes)
    obs, actions, _, next_obs, *_ = module.load_episodes(args, stored, env).numpy().T[[0, 2, 3, 4]]
    # The toy moves by 0.4 times the push in [-1, 1], whatever the box is called.
    np.testing.assert_allclose(next_obs - obs, 0.4 * actions, atol=1e-4)
    env.reset(seed=0)
    np.testing.assert_allclose(env.step(np.array([0.5], np.float32))[0][1], 0.5, atol=1e-6)
    rows = online_rows(module, tmp_path / "run")
    np.testing.assert_allclose(rows.next_obs[:, 1:], rows.actions, atol=1e-5)


@pytest.mark.parametrize(
    "env_id",
    ["Nowhere-v0", "toy:Nowhere-v0", "no_module:Toy-v0", "toy:Toy-v7", "a:b:c", ":", "a b", "toy"],
)
def test_unknown_environment(refused, toy_file, env_id):
    refused(quick(ONE, dataset=toy_file, env_id=env_id), f"--env-id {env_id}")


@pytest.mark.parametrize(
    "error",
    ["RuntimeError", "OSError", "KeyError", "AttributeError", "SystemExit", "KeyboardInterrupt"],
)
def test_constructor_raises(refused, tmp_path, toy_data, error):
    save(tmp_path / "t.hdf5", toy_data, env_id="toy:Toy-v0", env_kwargs={"error": error})
    refused(quick(ONE, dataset="t.hdf5", env_id=None), "toy:Toy-v0")


def test_module_raises(refused, tmp_path, toy_file, monkeypatch):
    (tmp_path / "broken.py").write_text("import gymnasium\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    refused(quick(ONE, dataset=toy_file, env_id="broken:Toy-v0"), "broken:Toy-v0")


@pytest.mark.parametrize("actions", ["discrete", "unbounded", "point"])
def test_actions_are_no_bounded_box(refused, tmp_path, toy_data, actions):
    save(tmp_path / "t.hdf5", toy_data, env_id="toy:Toy-v0", env_kwargs={"actions": actions})
    refused(quick(ONE, dataset="t.hdf5", env_id=None), "toy:Toy-v0")


class Lists(Toy):
    """Observes a list of no given length."""

    def __init__(self):
        super().__init__()
        self.observation_space = gym.spaces.Sequence(self.observation_space)

    def observe(self):
        return (self.state.copy(),)


def test_observations_are_no_box(refused, toy_file):
    gym.register("Lists-v0", Lists)
    refused(quick(ONE, dataset=toy_file, env_id="Lists-v0"), "--env-id Lists-v0")


def test_no_environment_named(refused, toy_file):
    refused(quick(ONE, dataset=toy_file, env_id=None), "--env-id")


@pytest.mark.parametrize(
    "attributes", [{"env_kwargs": "no JSON"}, {"env_kwargs": "[1]"}, {"env_kwargs": '{"no": 1}'}]
)
def test_bad_attributes(refused, tmp_path, toy_data, attributes):
    save(tmp_path / "t.hdf5", toy_data, **{"env_id": "toy:Toy-v0"} | attributes)
    refused(quick(ONE, dataset="t.hdf5", env_id=None), "toy:Toy-v0")


def test_attributes_of_others(tmp_path, toy_data):
    """What h5py cannot read does no harm, unless it is the run's."""
    path = save(tmp_path / "t.hdf5", toy_data, env_id="toy:Toy-v0", ref_min_score=-3)
    with h5py.File(path, "r+") as file:
        h5py.h5a.create(file.id, b"note", h5py.h5t.UNIX_D32LE, h5py.h5s.create(h5py.h5s.SCALAR))
        file.attrs["fixed"] = np.bytes_("text")
    _, attributes = load_script(ONE).read_dataset(str(path))
    assert attributes.pop("sha256")
    assert attributes == {"env_id": "toy:Toy-v0", "ref_min_score": -3}


# --- Flags ----------------------------------------------------------------------------------------


OUT_OF_RANGE = {
    "seed": [-1],
    "offline_steps": [-1],
    "online_steps": [-1],
    "eval_every_offline": [0, -5],
    "eval_every_online": [0, -5],
    "eval_episodes": [0],
    "threads": [0],
    "gamma": [-0.1, 1.0, 1.5, "nan"],
    "reward_scale": ["nan", "inf"],
    "reward_bias": ["nan", "inf"],
    "failure_reward": ["nan"],
    "batch_size": [0, -1],
    "offline_share": [-0.5, 1.1, -2, "nan"],
    "buffer_size": [0],
    "utd": [0],
    "tau": [0.0, 1.5, -0.1, "nan"],
    "n_actions": [0],
    "actor_lr": [-1e-3, "nan", "inf"],
    "critic_lr": [-1e-3, "nan", "inf"],
    "actor_hidden": [(0,), (-8, 8)],
    "critic_hidden": [(0,), (8, -8)],
    "value_hidden": [(0,), (8, -8)],
    "cql_weight": ["nan", "inf"],
    "lagrange_gap": ["nan", "inf"],
    "value_lr": [-1e-3, "nan", "inf"],
    "expectile": [-0.1, 1.5, "nan"],
    "beta": [-0.1, "nan", "inf"],
    "dropout": [-0.1, 1.0, 1.5, "nan"],
    "fixed_log_std": [-5.5, 2.5, "nan", "inf"],
    "weight_decay": [-1e-3, "nan", "inf"],
    "awac_lambda": [0.0, -1.0, "nan", "inf"],
}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]]
)
def test_value_out_of_range(refused, toy_file, name, value):
    """By every script that has the flag."""
    scripts = [
        script
        for script in SCRIPTS
        if name in {field.name for field in fields(load_script(script).Args)}
    ]
    assert scripts, "a flag of none"
    for script in scripts:
        line = quick(script, dataset=toy_file) + words(**{name: value})
        refused(line, f"--{name.replace('_', '-')}", script)


@pytest.mark.parametrize(
    "script, settings",
    [
        ("iql", dict(expectile=0.0, beta=0.0, dropout=0.0, value_lr=0.0)),
        ("iql", dict(expectile=1.0, beta=1000.0, dropout=0.99, fixed_log_std=-5.0)),
        ("awac", dict(awac_lambda=1e-6, weight_decay=0.0, offline_share=-1.0)),
        ("awac", dict(awac_lambda=1e6, weight_decay=1.0, offline_share=0.0)),
    ],
)
def test_value_at_the_limit(script, settings):
    args, _ = load_script(script).parse_args(words(**settings))
    assert {name: getattr(args, name) for name in settings} == settings


def test_no_steps_at_all(run_here, tmp_path, toy_file):
    """That is one evaluation."""
    line = quick(ONE, dataset=toy_file, offline_steps=0, online_steps=0, run_dir="run")
    run_here(ONE, *line)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["before"] == summary["after"] and "dip" not in summary["after"]


@pytest.mark.parametrize("line", [["--nonsense"], ["--seed", "x"], ["--seed", "1e3"], ["word"]])
def test_what_tyro_refuses(refused, line):
    refused(line, line[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_without_cuda(refused, toy_file):
    refused(quick(ONE, dataset=toy_file, device="cuda"), "--device cuda")


def test_help_names_every_flag(script, tmp_path):
    """As a user asks for it: a process of its own, the text on stdout, status 0."""
    shown = run_script(ROOT / f"{script}.py", "--help", cwd=tmp_path)
    assert shown.status == 0 and shown.stderr == ""
    for field in fields(load_script(script).Args):
        assert f"--{field.name.replace('_', '-')}" in shown.stdout
    assert not any(tmp_path.iterdir())


def test_a_refusal_as_a_user_sees_it(script, tmp_path):
    """The same in a process of its own: nothing but one line, and status 2 for the shell."""
    shown = run_script(ROOT / f"{script}.py", "--dataset", "nowhere.hdf5", cwd=tmp_path)
    assert shown.status == 2 and shown.stdout == ""
    assert "nowhere.hdf5" in shown.stderr and len(shown.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


# --- The folder of a run --------------------------------------------------------------------------


@pytest.fixture
def old_run(run_here, tmp_path, toy_data, refused):
    """A finished run in tmp_path / "run", made from tmp_path / "toy.hdf5"."""
    save(tmp_path / "toy.hdf5", toy_data)
    run_here(ONE, *quick(ONE, dataset="toy.hdf5", run_dir="run"))
    return tmp_path / "run"


def unfinish(run_dir):
    """What a kill would have left: no summary, and no lock (this process still holds it)."""
    (run_dir / "summary.json").unlink()


def test_folder_with_a_finished_run(refused, old_run):
    message = refused(quick(ONE, dataset="toy.hdf5", run_dir="run"), "--run-dir run: holds a run")
    assert "take another" in message


def test_folder_with_an_unfinished_run(refused, old_run):
    unfinish(old_run)
    message = refused(quick(ONE, dataset="toy.hdf5", run_dir="run"), "--run-dir run: holds a run")
    assert "--resume run" in message, "how to continue it"


def test_default_folder_is_protected_too(run_here, refused, toy_file):
    line = quick(ONE, dataset=toy_file)
    run_here(ONE, *line)
    refused(line, os.path.join("runs", f"{ONE}-{toy_file.stem}-s0"))


@pytest.mark.parametrize("run_dir", ["file", "file/run"])
def test_folder_that_cannot_be(tmp_path, toy_file, run_dir):
    """Under a file even root cannot make a folder."""
    (tmp_path / "file").write_text("")
    line = quick(ONE, dataset=toy_file, run_dir=run_dir)
    shown = run_script(ROOT / f"{ONE}.py", *line, cwd=tmp_path)
    assert shown.status == 2
    [message] = shown.stderr.splitlines()
    assert message.startswith(f"{ONE}.py: --run-dir {run_dir}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("folder", ["nowhere", ".", "toy.hdf5"])
def test_resume_of_no_run(refused, old_run, folder):
    refused(["--resume", folder], f"--resume {folder}")


@pytest.mark.parametrize(
    "content", [b"", b'{"script": "', b"[]", b"{}", b"null", b"\xff\xfe"], ids=repr
)
def test_resume_with_damaged_settings(refused, old_run, content):
    unfinish(old_run)
    (old_run / "args.json").write_bytes(content)
    refused(["--resume", "run"], "--resume run")


@pytest.mark.parametrize("line", [["--resume", ""], ["--resume="]])
def test_resume_of_nothing(refused, line):
    """Of an empty variable, say: that is no new run."""
    refused(line, "--resume")


def test_resume_of_nothing_in_the_folder_of_a_run(refused, old_run, monkeypatch):
    unfinish(old_run)
    monkeypatch.chdir(old_run)
    refused(["--resume="], "--resume")


def test_resume_of_another_script(refused, old_run):
    for script in SCRIPTS:
        if script != ONE:
            # Also one with other settings, which cannot read those of the run.
            refused(["--resume", "run"], f"--resume run: made by {ONE}.py", script)


def test_resume_with_another_dataset(refused, old_run, toy_data):
    save(old_run.parent / "toy.hdf5", toy_data | {"rewards": toy_data["rewards"] * 2})
    refused(["--resume", "run"], "toy.hdf5")


def test_resume_without_the_dataset(refused, old_run):
    (old_run.parent / "toy.hdf5").unlink()
    refused(["--resume", "run"], "toy.hdf5")


@pytest.mark.parametrize(
    "extra",
    [["--seed", "1"], ["--offline-steps=7"], ["--online_steps", "7"], ["--no-infinite-horizon"]],
)
def test_resume_beside_other_flags(refused, old_run, extra):
    refused(["--resume", "run", *extra], extra[0].split("=")[0])
    refused([*extra, "--resume=run"], extra[0].split("=")[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_resume_on_a_device_that_is_not_there(refused, old_run):
    refused(["--resume", "run", "--device", "cuda"], "--device cuda")
