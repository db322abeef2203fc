"""Fine-tuning from the end of another run's pre-training: --pretrained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import read_checkpoint, read_events, same_bits, words
from lives import check_same_run, run_life, run_lives, undisturbed_runs
from toy import save

ONE = "cql"  # for what all scripts share


@pytest.fixture(scope="module")
def finished(toy_file, tmp_path_factory):
    """For each script the folder of a finished run."""
    return undisturbed_runs(toy_file, tmp_path_factory)


@pytest.fixture
def finetune(run_here, tmp_path):
    """Runs a script from a run's pre-training; the folder of the new run."""

    def finetune(script: str, pretrained: Path, **settings) -> Path:
        settings = dict(pretrained=pretrained, run_dir="finetuned") | settings
        run_here(script, *words(**settings))
        return tmp_path / settings["run_dir"]

    return finetune


def test_the_same_seed_gives_the_same_run(finished, finetune, script):
    """All that was learned is there, whatever the optimisers had gathered, too."""
    original, found = finished(script), finetune(script, finished(script))
    one, other = (read_checkpoint(run_dir) for run_dir in (original, found))
    before = [(step, result) for step, result in one["run"].pop("evaluations") if step >= 120]
    assert other["run"].pop("evaluations") == before
    assert same_bits(one, other)
    assert (original / "summary.json").read_bytes() == (found / "summary.json").read_bytes()
    pretrained = [read_checkpoint(run_dir, "pretrained.pt") for run_dir in (original, found)]
    assert same_bits(pretrained[0]["agent"], pretrained[1]["agent"])


def test_the_log_begins_with_fine_tuning(finished, finetune):
    log = read_events(finetune(ONE, finished(ONE)))
    assert [step for step, _ in log["eval/score"]] == [
        step for step, _ in read_events(finished(ONE))["eval/score"] if step >= 120
    ]
    assert {"eval/dip", "eval/regret", "train/return"} <= log.keys()
    assert min(step for rows in log.values() for step, _ in rows) == 120


def test_the_folder_of_its_own(finished, run_here, tmp_path):
    """It has a name that tells what it is, and settings that are those of the other run but for
    what is given."""
    run_here(ONE, *words(pretrained=finished(ONE), seed=3, online_steps=5))
    [run_dir] = (tmp_path / "runs").iterdir()
    assert run_dir.name == f"{ONE}-toy-random-finetuned-s3"
    settings = json.loads((run_dir / "args.json").read_text())["settings"]
    other = json.loads((finished(ONE) / "args.json").read_text())["settings"]
    changed = {name for name in settings if settings[name] != other[name]}
    assert changed == {"seed", "online_steps", "pretrained", "run_dir"}


def test_another_seed_plays_other_episodes(finished, finetune):
    """With the very same weights at the beginning."""
    found = finetune(ONE, finished(ONE), seed=1)
    pretrained = [read_checkpoint(run_dir, "pretrained.pt") for run_dir in (finished(ONE), found)]
    assert same_bits(pretrained[0]["agent"], pretrained[1]["agent"])
    online = [read_checkpoint(run_dir)["buffer"]["online"] for run_dir in (finished(ONE), found)]
    assert not torch.equal(online[0][:5], online[1][:5])


OTHER = [
    dict(offline_share=0.0),
    dict(offline_share=-1),
    dict(utd=2),
    dict(cql_weight=0.5),
    dict(actor_lr=0.01),
    dict(critic_lr=0.01),
    dict(buffer_size=20),
]


@pytest.mark.parametrize("settings", OTHER, ids=str)
def test_other_settings_of_fine_tuning_take_effect(finished, finetune, settings):
    found = read_checkpoint(finetune(ONE, finished(ONE), **settings))
    original = read_checkpoint(finished(ONE))
    counters = found["run"]
    assert counters["updates"] == 120 + settings.get("utd", 1) * counters["online_steps"]
    changed = [
        name
        for name, weights in original["agent"].items()
        if not torch.equal(weights, found["agent"][name])
    ]
    if "buffer_size" in settings:
        assert len(found["buffer"]["online"]) == 20 < len(original["buffer"]["online"])
    assert any("actor" in name for name in changed) and any("critic" in name for name in changed)


def test_a_learning_rate_of_0_keeps_the_weights(finished, finetune):
    """As it would not if the optimiser's own rate came with its state."""
    found = finetune(ONE, finished(ONE), actor_lr=0, critic_lr=0)
    weights = read_checkpoint(found)["agent"]
    before = read_checkpoint(finished(ONE), "pretrained.pt")["agent"]
    for name, tensor in weights.items():
        if "target" not in name:  # they still follow the critics
            assert torch.equal(tensor, before[name]), name


def test_it_can_be_killed_and_resumed(finished, toy_file, tmp_path, script):
    """Also before its first checkpoint, when it has nothing but the other run's file."""
    line = words(pretrained=finished(script), seed=7, online_steps=40)
    alone = run_lives(script, line, tmp_path / "alone")
    lives = [("judge", 4), ("save", 1), ("explore", 3), ("update", 7), ("sync pretrained.pt", 1)]
    lives = [*lives[:2], lives[-1], *lives[2:4], ("rename checkpoint.pt", 1)]
    check_same_run(alone, run_lives(script, line, tmp_path / "killed", lives, tick=100))


def test_it_can_be_resumed_from_elsewhere(finished, tmp_path, run_here, monkeypatch):
    """Its folder was given by a path that means nothing there."""
    shutil.copytree(finished(ONE), tmp_path / "original")
    run_life(ONE, ["--pretrained=original"], tmp_path, ("judge", 1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_here(ONE, "--resume", str(tmp_path / "run"))
    one, other = (
        read_checkpoint(run_dir)["agent"] for run_dir in (finished(ONE), tmp_path / "run")
    )
    assert same_bits(one, other)


FIXED = [
    dict(gamma=0.5),
    dict(reward_scale=2.0),
    dict(reward_bias=1.0),
    dict(failure_reward=-1.0),
    dict(infinite_horizon=True),
    dict(normalize_observations=True),
    dict(offline_steps=130),
    dict(offline_steps=110),
    dict(actor_hidden=(8, 8)),
    dict(critic_hidden=(9,)),
]


@pytest.mark.parametrize("settings", FIXED, ids=str)
def test_what_pre_training_has_fixed(finished, finetune, tmp_path, capsys, settings):
    """Weights that were learned for other returns, or another network's, are refused."""
    with pytest.raises(SystemExit) as end:
        finetune(ONE, finished(ONE), **settings)
    [message] = capsys.readouterr().err.splitlines()
    [name] = settings
    assert end.value.code == 2 and message.startswith(f"{ONE}.py: ")
    assert f"{name} must stay as in that run" in message
    assert not list(tmp_path.glob("finetuned/checkpoint*"))


def refusal(run_here, capsys, *line: str) -> str:
    with pytest.raises(SystemExit) as end:
        run_here(*line)
    [message] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    return message


def test_what_is_refused(finished, run_here, toy_data, tmp_path, capsys):
    """Another script's run, another dataset, a run that has not got that far, a damaged file, and
    what is no run at all."""
    run = f"--pretrained={finished(ONE)}"
    assert f"{ONE}.py" in refusal(run_here, capsys, "cal_ql", run)
    other = save(tmp_path / "other.hdf5", toy_data | {"rewards": toy_data["rewards"] * 2})
    message = refusal(run_here, capsys, ONE, run, f"--dataset={other}")
    assert "other.hdf5 is not the file" in message
    assert "no-run" in refusal(run_here, capsys, ONE, "--pretrained=no-run")
    shutil.copytree(finished(ONE), "copy")
    content = Path("copy/pretrained.pt").read_bytes()
    Path("copy/pretrained.pt").write_bytes(content[: len(content) // 2])
    message = refusal(run_here, capsys, ONE, "--pretrained=copy", "--run-dir=new")
    assert "copy/pretrained.pt is damaged" in message
    Path("copy/pretrained.pt").unlink()
    assert "has not finished pre-training" in refusal(run_here, capsys, ONE, "--pretrained=copy")
