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
from scripts import FIXTURES, OWN_FIXTURES, ROOT, load_script, noise_for, small_problem

GOOD = {
    "cal_ql": OWN_FIXTURES / "calql_antmaze.npz",
    "iql": OWN_FIXTURES / "iql_adroit_dropout.npz",
    "awac": OWN_FIXTURES / "awac_jaxrl_lambda0333.npz",
}
KINDS = {path: parity.read(path)[0].get("kind") for path in FIXTURES}
PAIRS = [
    pytest.param(script, path, id=f"{script}-{path.stem}")
    for path, kind in KINDS.items()
    for script in parity.SCRIPTS_OF_KIND.get(kind, ())  # return_to_go.npz: see test_returns.py
]


@pytest.mark.parametrize("script, path", PAIRS)
def test_the_script_reproduces_the_reference(script, path, capsys):
    assert parity.main([script, str(path)]) == 0
    # One verdict for each precision, or the setting that keeps it from being compared.
    lines = capsys.readouterr().out.splitlines()
    compared = [line.endswith(": ok") for line in lines]
    assert compared == [True, True] or "not offered" in lines[0]


def changed(tmp_path, script, change):
    """A copy of the script's fixture after change(meta, arrays)."""
    meta, arrays = parity.read(GOOD[script])
    change(meta, arrays)
    path = tmp_path / "changed.npz"
    np.savez(path, meta=json.dumps(meta), **arrays)
    return str(path)


def with_settings(**settings):
    return lambda meta, arrays: meta["settings"].update(settings)


def test_the_program_runs_from_anywhere(tmp_path):
    other = changed(tmp_path, "cal_ql", with_settings(cql_temp=0.6))
    fixtures = [GOOD["cal_ql"], other, OWN_FIXTURES / "cql_adroit.npz"]
    words = [ROOT / "tests" / "parity.py", "cal_ql.py", *fixtures]
    run = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.count(": ok") == 2, run.stdout + run.stderr
    assert "not offered, not compared: cql_temp=0.6" in run.stdout
    assert "cql_adroit.npz: not usable with cal_ql.py: of the kind cql, which" in run.stdout
    assert run.returncode == 2
    assert run.stderr == ""


# --- What the program does not let pass -----------------------------------------------------------


# Far below what a glance at a curve shows, and above the tolerances.
@pytest.mark.parametrize(
    "script, name, error",
    [
        ("cal_ql", "f64/step1/loss/alpha_loss", 1e-11),
        ("cal_ql", "f64/step2/loss/qf2_loss", 1e-11),
        ("cal_ql", "f64/step3/loss/alpha_prime_loss", 1e-11),
        ("cal_ql", "f64/step1/local/cql_q2_next_actions_raw", 1e-8),
        ("cal_ql", "f64/step1/local/bound_rate_ql_q2_next_actions", 1e-6),
        ("cal_ql", "f64/step1/grad/q1/dense0/kernel", 1e-11),
        ("cal_ql", "f64/step1/grad/actor/log_std_offset", 1e-11),
        ("cal_ql", "f64/step1/w/q2_target/dense3/bias", 1e-13),
        ("cal_ql", "f64/step3/w/log_alpha_prime", 1e-10),
        ("cal_ql", "f32/step1/loss/policy_loss", 2e-4),
        ("cal_ql", "f32/step1/grad/q2/dense1/kernel", 1e-3),
        ("cal_ql", "f32/step3/w/actor/dense0/kernel", 1e-4),
        ("cal_ql", "f32/step1/w/q1/dense0/bias", np.nan),
        ("iql", "f64/step1/loss/critic_loss", 1e-11),
        ("iql", "f64/step2/loss/v", 1e-11),
        ("iql", "f64/step2/loss/actor_loss", 1e-11),
        ("iql", "f64/step3/loss/value_loss", 1e-11),
        ("iql", "f64/step1/local/adv", 1e-11),
        ("iql", "f64/step1/local/exp_a", 1e-11),
        ("iql", "f64/step1/local/q2_pred", 1e-11),
        ("iql", "f64/step1/local/q1_target_net", 1e-11),
        ("iql", "f64/step1/local/v_before", 1e-11),
        ("iql", "f64/step1/local/next_v_after", 1e-11),
        ("iql", "f64/step1/local/td_target", 1e-11),
        ("iql", "f64/step1/grad/v/dense0/kernel", 1e-11),
        ("iql", "f64/step1/grad/actor/log_stds", 1e-11),
        ("iql", "f64/step3/w/v/dense2/bias", 1e-9),
        ("iql", "f32/step1/local/exp_a", 1e-4),
        ("iql", "f32/step3/loss/q1", 2e-4),
        ("iql", "f32/step3/w/q1_target/dense0/kernel", 1e-4),
        ("awac", "f64/step1/loss/q2", 1e-11),
        ("awac", "f64/step2/loss/critic_loss", 1e-11),
        ("awac", "f64/step3/loss/actor_loss", 1e-11),
        ("awac", "f64/step1/local/adv", 1e-11),
        ("awac", "f64/step1/local/weights", 1e-11),
        ("awac", "f64/step1/local/v", 1e-11),
        ("awac", "f64/step1/local/log_probs", 1e-11),
        ("awac", "f64/step1/local/pi_actions", 1e-11),
        ("awac", "f64/step1/local/next_actions", 1e-11),
        ("awac", "f64/step1/local/td_target", 1e-11),
        ("awac", "f64/step1/grad/actor/dense3/bias", 1e-11),
        ("awac", "f64/step1/w/actor/dense1/kernel", 1e-13),
        ("awac", "f64/step3/w/actor/log_stds", 1e-9),
        ("awac", "f32/step1/local/q1_pred", 1e-4),
        ("awac", "f32/step1/grad/q2/dense1/kernel", 1e-3),
    ],
)
def test_an_error_is_found_and_named(tmp_path, capsys, script, name, error):
    def change(meta, arrays):
        # In the largest number alone, so that the program must look at every single one.
        at = np.unravel_index(np.abs(arrays[name]).argmax(), arrays[name].shape)
        arrays[name] = np.array(arrays[name])
        arrays[name][at] *= 1 + error

    assert parity.main([script, changed(tmp_path, script, change)]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if "BEYOND" in line]
    assert len(bad) == 1 and f" {name[:3]}: " in bad[0]
    kind, parameter = name.split("/", 3)[2:]
    # What is on the way has the script's name in CQL, where it is a metric.
    assert parameter in bad[0] or (kind, script) == ("local", "cal_ql")


def test_scripts_do_not_reproduce_one_another():
    """The kind alone is changed: the numbers of CQL are not those of Cal-QL."""
    meta, arrays = parity.read(GOOD["cal_ql"])
    errors = parity.compare_updates(load_script("cql"), meta, arrays, "f64")
    assert min(errors[kind].excess for kind in ("losses", "gradients", "weights")) > 1e6


@pytest.mark.parametrize(
    "name, pupil, teacher",
    [
        ("iql", "actor_loss", "value"),
        ("iql", "critic_loss", "value"),
        ("awac", "actor_loss", "critic"),
    ],
)
def test_the_order_of_updates_matters(name, pupil, teacher):
    """All is right but that one network learns from what another was before its step."""
    script = load_script(name)

    class Agent(script.Agent):
        def update(self, batch, noise):
            old, loss_of = copy.deepcopy(getattr(self, teacher)), getattr(super(), pupil)

            def loss_of_old(*given):
                new = getattr(self, teacher)
                setattr(self, teacher, old)
                found = loss_of(*given)
                setattr(self, teacher, new)
                return found

            setattr(self, pupil, loss_of_old)
            return super().update(batch, noise)

    hasty = SimpleNamespace(**vars(script) | {"Agent": Agent})
    for precision in parity.PRECISIONS:
        errors = parity.compare_updates(hasty, *parity.read(GOOD[name]), precision)
        assert min(error.excess for error in errors.values()) > 1, errors


# --- Settings, sizes and broken files -------------------------------------------------------------


@pytest.mark.parametrize(
    "script, name, value",
    [
        ("cal_ql", "use_cql", False),
        ("cal_ql", "alpha_multiplier", 0.5),
        ("cal_ql", "use_automatic_entropy_tuning", False),
        ("cal_ql", "backup_entropy", True),
        ("cal_ql", "cql_temp", 0.6),
        ("cal_ql", "cql_clip_diff_min", -200.0),
        ("cal_ql", "cql_clip_diff_max", 4.5),
        ("cal_ql", "rng", "native"),
        ("iql", "opt_decay_schedule", "cosine"),
        ("iql", "tanh_squash_distribution", True),
        ("awac", "source", "corl"),
        ("awac", "state_dependent_std", True),
        ("awac", "target_update_period", 2),
    ],
)
def test_a_setting_that_is_not_offered_is_named(tmp_path, capsys, script, name, value):
    path = changed(tmp_path, script, with_settings(**{name: value}))
    assert parity.main([script, path]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert f"not offered, not compared: {name}={value}, here always " in line


def cql_format(args, noise):
    """Settings and draws as fixtures have them."""
    settings = dict(
        discount=args.gamma,
        soft_target_update_rate=args.tau,
        policy_lr=args.actor_lr,
        qf_lr=args.critic_lr,
        cql_min_q_weight=args.cql_weight,
        cql_importance_sample=args.importance_sampling,
        cql_max_target_backup=args.max_target_backup,
        cql_lagrange=args.lagrange_gap is not None,
        cql_target_action_gap=args.lagrange_gap,
        target_entropy=args.target_entropy * noise["actor"].shape[-1],
    )
    draws = dict(eps_pi=noise["actor"][:, 0], eps_next_target=noise["target"])
    draws |= dict(eps_current=noise["policy"][:, 0], eps_next=noise["policy"][:, 1])
    return settings, draws | dict(u_random=noise["random"])


def iql_format(args, noise):
    names = ("tau", "actor_lr", "critic_lr", "value_lr", "expectile")
    settings = {name: getattr(args, name) for name in names}
    settings |= dict(discount=args.gamma, temperature=args.beta, opt_decay_schedule=None)
    layers = range(len(args.actor_hidden) if args.dropout else 0)
    draws = {f"dropout_keep_layer{i}": noise[f"dropout{i}"] > 0 for i in layers}
    return settings | dict(dropout_rate=args.dropout or None), draws


def awac_format(args, noise):
    settings = {name: getattr(args, name) for name in ("tau", "actor_lr", "critic_lr")}
    settings |= dict(discount=args.gamma, beta=args.awac_lambda, weight_decay=args.weight_decay)
    eps_pi = noise["actor"].movedim(1, 0) if args.n_actions > 1 else noise["actor"][:, 0]
    return settings, dict(eps_next=noise["target"], eps_pi=eps_pi)


FORMATS = {"cql": cql_format, "cal_ql": cql_format, "iql": iql_format, "awac": awac_format}


def write_fixture(path, name, n_steps, batch_size, **settings):
    """A fixture of any size with the script's own numbers: it tests the program, not the maths."""
    script, family = load_script(name), parity.FAMILIES[name]
    start, batch, _ = small_problem(script, torch.float32, batch_size, **settings)
    names = ("observations", "actions", "rewards", "next_observations", "dones", "mc_returns")
    arrays = {f"batch/{name}": column.numpy() for name, column in zip(names, batch)}
    for column in ("rewards", "dones", "mc_returns"):
        arrays[f"batch/{column}"] = arrays[f"batch/{column}"][:, 0]
    if name in ("iql", "awac"):
        del arrays["batch/mc_returns"]
    if name == "iql":
        arrays["batch/masks"] = 1 - arrays.pop("batch/dones")
    noises = [noise_for(start, step, torch.float32) for step in range(n_steps)]

    def save(prefix, tensors):
        for name, tensor in tensors.items():
            arrays[f"{prefix}/{name}"] = parity.as_stored(name, tensor).copy()

    for step, noise in enumerate(noises, 1):
        settings, draws = FORMATS[name](start.args, noise)
        save(f"noise/step{step}", draws)
    for precision, dtype in parity.PRECISIONS.items():
        # The names are those that the program gives to the numbers of an agent.
        agent = copy.deepcopy(start).to(dtype)
        problem = family(agent, script.Batch(*(column.to(dtype) for column in batch)))
        parameters = problem.parameters()
        save("w0", {name: value.float() for name, value in parameters.items()})
        for step, noise in enumerate(noises, 1):
            noise = {name: draw.to(dtype) for name, draw in noise.items()}
            losses, values = problem.update(noise)
            save(f"{precision}/step{step}/loss", losses)
            save(f"{precision}/step{step}/local", values)
            save(f"{precision}/step{step}/w", parameters)
            trained = {name: x.grad for name, x in parameters.items() if x.grad is not None}
            save(f"{precision}/step{step}/grad", trained)
    kind = next(kind for kind, scripts in parity.SCRIPTS_OF_KIND.items() if name in scripts)
    np.savez(path, meta=json.dumps(dict(kind=kind, settings=settings)), **arrays)


SIZES = {
    "cql": {
        "flat": (1, 5, dict(actor_hidden=(7,), critic_hidden=(9,), n_actions=1)),
        "deep": (4, 2, dict(actor_hidden=(3, 5, 4), critic_hidden=(4, 3), lagrange_gap=-0.5)),
        "linear": (2, 3, dict(actor_hidden=(), max_target_backup=False, target_entropy=0.1)),
    },
    "iql": {
        "flat": (1, 5, dict(actor_hidden=(7,), critic_hidden=(9,), value_hidden=(6,))),
        "deep": (4, 2, dict(actor_hidden=(3, 5, 4), value_hidden=(4, 3), expectile=0.9, beta=8.0)),
        "linear": (2, 3, dict(actor_hidden=(), critic_hidden=(), value_hidden=(), dropout=0.2)),
        # Of which 1 / (1 - dropout) is a number in float32 too, where a script draws its masks.
        "dropout": (3, 1, dict(actor_hidden=(6, 9), dropout=0.75, actor_lr=1e-2, value_lr=1e-3)),
    },
    "awac": {
        "flat": (1, 5, dict(actor_hidden=(7,), critic_hidden=(9,))),
        "deep": (4, 2, dict(actor_hidden=(3, 5, 4), n_actions=5, awac_lambda=0.2, tau=0.3)),
        "linear": (2, 3, dict(actor_hidden=(), critic_hidden=(), n_actions=1, weight_decay=0.5)),
    },
}
SIZES["cal_ql"] = SIZES["cql"]


@pytest.mark.parametrize(
    "name, n_steps, batch_size, settings",
    [pytest.param(k, *v, id=f"{k}-{size}") for k, of in SIZES.items() for size, v in of.items()],
)
def test_fixtures_may_have_any_size(tmp_path, capsys, name, n_steps, batch_size, settings):
    write_fixture(tmp_path / "own.npz", name, n_steps, batch_size, **settings)
    assert parity.main([name, str(tmp_path / "own.npz")]) == 0
    assert capsys.readouterr().out.count(": ok") == 2


@pytest.mark.parametrize("error, status", [(0, 0), (1e-6, 1)])
def test_a_rate_is_compared_as_precisely_as_it_is_counted(tmp_path, error, status):
    """It is the mean of truth values, in float32 in a run in float64, too: 1 / 33 has a rounding
    error there, where the 1 / 32 of the authors' batches has none."""
    write_fixture(tmp_path / "own.npz", "cal_ql", 1, 33)
    meta, arrays = parity.read(tmp_path / "own.npz")
    n_values = 33 * 2 * 2 * 3  # batch, critics, states and actions
    rate = arrays["f64/step1/local/calibration/rate"].item()
    exact = round(rate * n_values) / n_values
    assert 0 < abs(rate - exact) < 1e-7
    arrays["f64/step1/local/bound_rate_all"] = np.array(exact * (1 + error))
    np.savez(tmp_path / "own.npz", meta=json.dumps(meta), **arrays)
    assert parity.main(["cal_ql", str(tmp_path / "own.npz")]) == status


def test_where_tanh_saturates_softplus_is_allowed_its_error(tmp_path):
    """The tolerance is wider there, and only there."""

    def saturate(meta, arrays):
        arrays["w0/actor/dense2/bias"] = np.full(6, 12, np.float32)

    for path, wide in (GOOD["cal_ql"], False), (changed(tmp_path, "cal_ql", saturate), True):
        meta, arrays = parity.read(path)
        problem = parity.Cql.of(load_script("cal_ql"), meta["settings"], arrays, torch.float32)
        weights = {k: torch.tensor(v) for k, v in parity.section(arrays, "w0/").items()}
        parity.set_weights(problem.parameters(), weights)
        draws = {k: torch.tensor(v) for k, v in parity.section(arrays, "noise/step1/").items()}
        assert problem.saturated(problem.noise(draws)) == wide


def without(name):
    return lambda meta, arrays: arrays.pop(name)


def with_array(name, *shape):
    return lambda meta, arrays: arrays.update({name: np.zeros(shape)})


def without_results(meta, arrays):
    for key in [key for key in arrays if key[0] == "f"]:
        del arrays[key]


@pytest.mark.parametrize(
    "script, change, words",
    [
        ("cal_ql", without("w0/q2/dense1/kernel"), "q2/dense1/kernel"),
        ("cal_ql", without("noise/step2/eps_next"), "eps_next"),
        ("cal_ql", without("batch/mc_returns"), "mc_returns"),
        ("cal_ql", with_array("w0/v/dense0/bias", 3), "v/dense0/bias"),
        ("cal_ql", with_array("w0/q1/dense0/bias", 3), "q1/dense0"),
        ("cal_ql", with_array("batch/actions", 9, 3), "eps_pi"),
        ("cal_ql", with_array("f64/step1/loss/entropy"), "its loss entropy"),
        ("cal_ql", lambda meta, arrays: meta["settings"].pop("discount"), "discount"),
        ("cal_ql", lambda meta, arrays: meta.update(kind="dreamer"), "kind is dreamer"),
        ("cal_ql", lambda meta, arrays: meta.update(kind="iql"), "belongs to iql.py"),
        ("cal_ql", lambda meta, arrays: meta.update(kind="cql"), "belongs to cql.py"),
        ("cal_ql", without_results, "no results"),
        ("iql", without("w0/v/dense1/kernel"), "v/dense1/kernel"),
        ("iql", without("w0/actor/log_stds"), "log_stds"),
        ("iql", without("batch/masks"), "dones"),
        ("iql", without("noise/step3/dropout_keep_layer1"), "dropout_keep_layer1"),
        ("iql", with_array("noise/step2/dropout_keep_layer0", 32, 9), "dropout_keep_layer0"),
        ("iql", with_array("f64/step1/local/adv", 9), "adv, step 1 has the shape"),
        ("iql", lambda meta, arrays: meta["settings"].pop("expectile"), "expectile"),
        ("iql", lambda meta, arrays: meta.update(kind="awac"), "belongs to awac.py"),
        ("awac", without("noise/step1/eps_pi"), "eps_pi"),
        ("awac", with_array("noise/step3/eps_pi", 2, 32, 3), "eps_pi"),
        ("awac", with_array("noise/step2/eps_next", 1, 32, 3), "eps_next"),
        ("awac", with_array("w0/v/dense0/bias", 3), "v/dense0/bias"),
        ("awac", lambda meta, arrays: meta["settings"].pop("weight_decay"), "weight_decay"),
    ],
)
def test_an_incomplete_fixture_gives_one_line(tmp_path, capsys, script, change, words):
    assert parity.main([script, changed(tmp_path, script, change)]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert f"not usable with {script}.py" in line and words in line


def test_a_step_without_results_is_still_made(tmp_path, capsys):
    """Not all steps have results, and IQL need not have noise: neither alone tells their number."""
    path = tmp_path / "own.npz"
    write_fixture(path, "iql", 3, 4)
    meta, arrays = parity.read(path)
    arrays = {name: value for name, value in arrays.items() if not name[3:].startswith("/step2")}
    np.savez(path, meta=json.dumps(meta), **arrays)
    assert parity.main(["iql", str(path)]) == 0
    assert capsys.readouterr().out.count(": ok") == 2


def test_a_broken_file_gives_one_line(tmp_path, capsys):
    paths = [
        tmp_path / name for name in ("missing.npz", "text.npz", "empty.npz", "cut.npz", "a.npy")
    ]
    paths[1].write_text("episode,return")
    paths[2].write_bytes(b"")
    paths[3].write_bytes(GOOD["cal_ql"].read_bytes()[:100_000])
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
            parity.main([name, str(GOOD["cal_ql"])])
        assert "error: " in capsys.readouterr().err
