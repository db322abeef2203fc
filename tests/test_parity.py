"""The scripts reproduce numbers of the authors' own code, and the program that says so is honest.

All fixtures in tests/fixtures are taken, and all in $PARITY_DIR where it is set.
"""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import parity
import pytest
import torch
from scripts import CQL_FAMILY, FIXTURES, OWN_FIXTURES, ROOT, load_script, noise_for, small_problem

GOOD = OWN_FIXTURES / "calql_antmaze.npz"
KINDS = {path: parity.read(path)[0].get("kind") for path in FIXTURES}
PAIRS = [
    pytest.param(script, path, id=f"{script}-{path.stem}")
    for path, kind in KINDS.items()
    for script in parity.SCRIPTS_OF_KIND.get(kind, ())  # return_to_go.npz: see test_returns.py
]


@pytest.mark.parametrize("script, path", PAIRS)
def test_the_script_reproduces_the_reference(script, path, capsys):
    if script not in parity.FAMILIES:
        pytest.skip(f"no {script}.py yet")
    assert parity.main([script, str(path)]) == 0
    # One verdict for each precision, or the setting that keeps it from being compared.
    lines = capsys.readouterr().out.splitlines()
    compared = [line.endswith(": ok") for line in lines]
    assert compared == [True, True] or "not offered" in lines[0]


def test_the_program_runs_from_anywhere(tmp_path):
    fixtures = [GOOD, OWN_FIXTURES / "calql_temp_clip.npz", OWN_FIXTURES / "cql_adroit.npz"]
    words = [ROOT / "tests" / "parity.py", "cal_ql.py", *fixtures]
    run = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.count(": ok") == 2, run.stdout + run.stderr
    assert "not offered, not compared: cql_temp=0.6" in run.stdout
    assert "cql_adroit.npz: not usable with cal_ql.py: of the kind cql, which" in run.stdout
    assert run.returncode == 2
    assert run.stderr == ""


# --- What the program does not let pass -----------------------------------------------------------


def changed(tmp_path, change, source=GOOD):
    """A copy of a fixture after change(meta, arrays)."""
    meta, arrays = parity.read(source)
    change(meta, arrays)
    path = tmp_path / "changed.npz"
    np.savez(path, meta=json.dumps(meta), **arrays)
    return str(path)


# Far below what a glance at a curve shows, and above the tolerances.
@pytest.mark.parametrize(
    "name, error",
    [
        ("f64/step1/loss/alpha_loss", 1e-11),
        ("f64/step2/loss/qf2_loss", 1e-11),
        ("f64/step3/loss/alpha_prime_loss", 1e-11),
        ("f64/step1/local/cql_q2_next_actions_raw", 1e-8),
        ("f64/step1/local/bound_rate_ql_q2_next_actions", 1e-10),
        ("f64/step1/grad/q1/dense0/kernel", 1e-11),
        ("f64/step1/grad/actor/log_std_offset", 1e-11),
        ("f64/step1/w/q2_target/dense3/bias", 1e-13),
        ("f64/step3/w/log_alpha_prime", 1e-10),
        ("f32/step1/loss/policy_loss", 2e-4),
        ("f32/step1/grad/q2/dense1/kernel", 1e-3),
        ("f32/step3/w/actor/dense0/kernel", 1e-4),
        ("f32/step1/w/q1/dense0/bias", np.nan),
    ],
)
def test_an_error_is_found_and_named(tmp_path, capsys, name, error):
    def change(meta, arrays):
        # In the largest number alone, so that the program must look at every single one.
        at = np.unravel_index(np.abs(arrays[name]).argmax(), arrays[name].shape)
        arrays[name] = np.array(arrays[name])
        arrays[name][at] *= 1 + error

    assert parity.main(["cal_ql", changed(tmp_path, change)]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if "BEYOND" in line]
    assert len(bad) == 1 and f" {name[:3]}: " in bad[0]
    kind, parameter = name.split("/", 3)[2:]
    assert parameter in bad[0] or kind == "local"


def test_scripts_do_not_reproduce_one_another():
    """The kind alone is changed: the numbers of CQL are not those of Cal-QL."""
    meta, arrays = parity.read(GOOD)
    errors = parity.compare_updates(load_script("cql"), meta, arrays, "f64")
    assert min(errors[kind].excess for kind in ("losses", "gradients", "weights")) > 1e6


# --- Settings, sizes and broken files -------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("use_cql", False),
        ("alpha_multiplier", 0.5),
        ("use_automatic_entropy_tuning", False),
        ("backup_entropy", True),
        ("cql_temp", 0.6),
        ("cql_clip_diff_min", -200.0),
        ("cql_clip_diff_max", 4.5),
        ("rng", "native"),
    ],
)
def test_a_setting_that_is_not_offered_is_named(tmp_path, capsys, name, value):
    path = changed(tmp_path, lambda meta, arrays: meta["settings"].update({name: value}))
    assert parity.main(["cal_ql", path]) == 0
    assert f"not offered, not compared: {name}={value}" in capsys.readouterr().out


def write_fixture(path, script, n_steps, batch_size, **settings):
    """A fixture of any size with the script's own numbers: it tests the program, not the maths."""
    start, batch, _ = small_problem(script, torch.float32, batch_size, **settings)
    names = ("observations", "actions", "rewards", "next_observations", "dones", "mc_returns")
    arrays = {f"batch/{name}": column.numpy() for name, column in zip(names, batch)}
    for name in ("rewards", "dones", "mc_returns"):
        arrays[f"batch/{name}"] = arrays[f"batch/{name}"][:, 0]
    noises = [noise_for(start, step, torch.float32) for step in range(n_steps)]

    def save(prefix, tensors):
        for name, tensor in tensors.items():
            arrays[f"{prefix}/{name}"] = parity.as_stored(name, tensor).copy()

    for step, noise in enumerate(noises, 1):
        draws = dict(eps_pi=noise["actor"][:, 0], eps_next_target=noise["target"])
        draws |= dict(eps_current=noise["policy"][:, 0], eps_next=noise["policy"][:, 1])
        save(f"noise/step{step}", draws | dict(u_random=noise["random"]))
    for precision, dtype in parity.PRECISIONS.items():
        # The names are those that the program gives to the numbers of an agent.
        agent = copy.deepcopy(start).to(dtype)
        view = SimpleNamespace(agent=agent, args=agent.args)
        view.batch = script.Batch(*(column.to(dtype) for column in batch))
        parameters = parity.Cql.parameters(view)
        save("w0", {name: value.float() for name, value in parameters.items()})
        for step, noise in enumerate(noises, 1):
            noise = {name: draw.to(dtype) for name, draw in noise.items()}
            save(f"{precision}/step{step}/loss", parity.Cql.losses(view, noise)[0])
            agent.update(view.batch, noise)
            save(f"{precision}/step{step}/w", parameters)
            trained = {name: x.grad for name, x in parameters.items() if x.grad is not None}
            save(f"{precision}/step{step}/grad", trained)
    settings = dict(
        discount=agent.args.gamma,
        soft_target_update_rate=agent.args.tau,
        policy_lr=agent.args.actor_lr,
        qf_lr=agent.args.critic_lr,
        cql_min_q_weight=agent.args.cql_weight,
        cql_importance_sample=agent.args.importance_sampling,
        cql_max_target_backup=agent.args.max_target_backup,
        cql_lagrange=agent.args.lagrange_gap is not None,
        cql_target_action_gap=agent.args.lagrange_gap,
        target_entropy=agent.target_entropy,
    )
    kind = {scripts[0]: kind for kind, scripts in parity.SCRIPTS_OF_KIND.items()}[script.__name__]
    np.savez(path, meta=json.dumps(dict(kind=kind, settings=settings)), **arrays)


@pytest.mark.parametrize("name", CQL_FAMILY)
@pytest.mark.parametrize(
    "n_steps, batch_size, settings",
    [
        (1, 5, dict(actor_hidden=(7,), critic_hidden=(9,), n_actions=1)),
        (4, 2, dict(actor_hidden=(3, 5, 4, 6), critic_hidden=(4, 3), lagrange_gap=-0.5)),
        (
            2,
            3,
            dict(actor_hidden=(), critic_hidden=(4,), max_target_backup=False, target_entropy=0.1),
        ),
    ],
    ids=["flat", "deep", "linear"],
)
def test_fixtures_may_have_any_size(tmp_path, capsys, name, n_steps, batch_size, settings):
    write_fixture(tmp_path / "own.npz", load_script(name), n_steps, batch_size, **settings)
    assert parity.main([name, str(tmp_path / "own.npz")]) == 0
    assert capsys.readouterr().out.count(": ok") == 2


def test_where_tanh_saturates_softplus_is_allowed_its_error(tmp_path):
    """The tolerance is wider there, and only there."""

    def saturate(meta, arrays):
        arrays["w0/actor/dense2/bias"] = np.full(6, 12, np.float32)

    for path, wide in (GOOD, False), (changed(tmp_path, saturate), True):
        meta, arrays = parity.read(path)
        problem = parity.Cql(load_script("cal_ql"), meta["settings"], arrays, torch.float32)
        weights = {k: torch.tensor(v) for k, v in parity.section(arrays, "w0/").items()}
        parity.set_weights(problem.parameters(), weights)
        draws = {k: torch.tensor(v) for k, v in parity.section(arrays, "noise/step1/").items()}
        assert problem.saturated(problem.noise(draws)) == wide


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda meta, arrays: arrays.pop("w0/q2/dense1/kernel"), "q2/dense1/kernel"),
        (lambda meta, arrays: arrays.pop("noise/step2/eps_next"), "eps_next"),
        (lambda meta, arrays: arrays.update({"w0/v/dense0/bias": np.zeros(3)}), "v/dense0/bias"),
        (lambda meta, arrays: arrays.update({"w0/q1/dense0/bias": np.zeros(3)}), "q1/dense0"),
        (lambda meta, arrays: arrays.update({"batch/actions": np.zeros((9, 3))}), "eps_pi"),
        (lambda meta, arrays: meta["settings"].pop("discount"), "discount"),
        (lambda meta, arrays: meta.update(kind="dreamer"), "kind is dreamer"),
        (lambda meta, arrays: meta.update(kind="iql"), "belongs to iql.py"),
        (lambda meta, arrays: meta.update(kind="cql"), "belongs to cql.py"),
        (
            lambda meta, arrays: [arrays.pop(key) for key in list(arrays) if key[0] == "f"],
            "no results",
        ),
    ],
)
def test_an_incomplete_fixture_gives_one_line(tmp_path, capsys, change, words):
    assert parity.main(["cal_ql", changed(tmp_path, change)]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "not usable with cal_ql.py" in line and words in line


def test_a_broken_file_gives_one_line(tmp_path, capsys):
    paths = [
        tmp_path / name for name in ("missing.npz", "text.npz", "empty.npz", "cut.npz", "a.npy")
    ]
    paths[1].write_text("episode,return")
    paths[2].write_bytes(b"")
    paths[3].write_bytes(GOOD.read_bytes()[:100_000])
    np.save(paths[4], np.zeros(3))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    for path in [*paths, tmp_path / "other.npz", tmp_path]:
        assert parity.main(["cal_ql", str(path)]) == 2
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{path}: not usable with cal_ql.py: ")


def test_a_script_may_be_named_in_three_ways_and_must_exist(capsys):
    assert load_script("cql") is load_script("cql.py") is load_script(str(ROOT / "cql.py"))
    for name in ("no_such_script", "tests/parity.py"):
        with pytest.raises(SystemExit, match="2"):
            parity.main([name, str(GOOD)])
        assert "error: " in capsys.readouterr().err
