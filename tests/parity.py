"""Compares a script with numbers of the authors' own code.

    python tests/parity.py SCRIPT FIXTURE.npz [...]

SCRIPT is cal_ql, cal_ql.py or a path. A fixture holds weights, a batch, the noise of some updates
and what the reference made of them in float32 and float64: losses, gradients, weights and values
on the way (`meta` names source and settings). The script's own code does the same updates, and the
largest relative errors are printed, with a verdict. return_to_go.npz holds episodes and what the
reference made of them; the script's loading of data and its returns do the same.

Exit status 0: all within the tolerances, or a fixture asks for a setting that the scripts
deliberately do not offer, which is named. 1: beyond the tolerances. 2: a file that cannot be used.
"""

import argparse
import json
import re
import sys
import zipfile
import zlib
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scripts import load_script
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


class Unusable(Exception):
    """A file, or a pair of script and file, that cannot be compared; the text says why."""


class NotOffered(Exception):
    """A fixture's setting that the scripts deliberately do not have; the text names it."""


class Worst(NamedTuple):
    """The worst error of one kind. `excess` is in units of its tolerance: above 1 is beyond."""

    relative: float = 0.0
    excess: float = 0.0
    where: str = ""

    def and_also(self, found, reference, allowed, where: str, scale=None) -> "Worst":
        """With one more array: errors relative to `scale`, by default the reference's maximum."""
        if np.shape(found) != np.shape(reference):
            raise Unusable(f"{where} has the shape {np.shape(reference)}, not {np.shape(found)}")
        error = np.abs(np.asarray(found) - np.asarray(reference))
        scale = np.abs(reference).max() if scale is None else scale
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(error == 0, 0, error / scale).max()
            excess = np.where(error == 0, 0, error / allowed).max()
        # nan is the largest error there is; a comparison with it would be false.
        relative, excess = (float(np.nan_to_num(x, nan=np.inf)) for x in (relative, excess))
        relative = max(self.relative, relative)
        return Worst(relative, *((excess, where) if excess > self.excess else self[1:]))


def section(arrays: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


# --- Scripts: how each is given a fixture, and what fixtures call its numbers ---------------------


class Cql:
    """cql.py and cal_ql.py."""

    fixed = dict(  # what the authors can set and the scripts cannot, on purpose
        use_cql=True,
        alpha_multiplier=1.0,
        use_automatic_entropy_tuning=True,
        backup_entropy=False,
        cql_temp=1.0,
        cql_clip_diff_min=-np.inf,
        cql_clip_diff_max=np.inf,
        rng="shared",  # "native": each of the five losses has noise of its own
    )
    logged = {  # metric -> the reference's variables that it is the mean of, by a pattern
        "q/data": r"q\d_pred",
        "q/random": r"cql_q\d_rand",
        "q/policy": r"cql_q\d_\w+_actions_raw",  # raw: before Cal-QL's line
        "q/gap": r"cql_qf\d_diff",
        "calibration/rate": r"bound_rate_\w+",
        "loss/td": r"qf\d_bellman_loss",
        "loss/cql": r"cql_min_qf\d_loss",
        "pi/alpha": r"alpha",
        "q/lagrange": r"alpha_prime",
    }

    def __init__(self, script: ModuleType, settings: dict, arrays: Arrays, dtype: torch.dtype):
        for name, value in self.fixed.items():
            found = settings.get(name, value)
            found = float(found) if isinstance(value, float) else found  # "-inf" is a text in JSON
            if found != value:
                raise NotOffered(f"{name}={found}, here always {value}")
        self.settings = settings
        # Sizes are read off the arrays, so that any file of the format will do.
        action_dim = arrays["batch/actions"].shape[1]
        self.args = script.Args(
            gamma=settings["discount"],
            tau=settings["soft_target_update_rate"],
            actor_hidden=hidden_widths(arrays, "actor"),
            critic_hidden=hidden_widths(arrays, "q1"),
            actor_lr=settings["policy_lr"],
            critic_lr=settings["qf_lr"],
            cql_weight=settings["cql_min_q_weight"],
            n_actions=arrays["noise/step1/u_random"].shape[1],
            importance_sampling=settings["cql_importance_sample"],
            max_target_backup=settings["cql_max_target_backup"],
            lagrange_gap=settings["cql_target_action_gap"] if settings["cql_lagrange"] else None,
            target_entropy=settings.get("target_entropy", -action_dim) / action_dim,
        )
        names = ("observations", "actions", "rewards", "next_observations", "dones", "mc_returns")
        columns = [torch.tensor(arrays[f"batch/{name}"], dtype=dtype) for name in names]
        self.batch = script.Batch(*(x if x.ndim == 2 else x[:, None] for x in columns))
        obs_dim = self.batch.obs.shape[1]
        self.agent = script.Agent(self.args, obs_dim, action_dim, "cpu").to(dtype)

    def parameters(self) -> dict[str, Tensor]:
        actor, critic, target = self.agent.actor, self.agent.critic, self.agent.critic_target
        networks = {"actor": actor.net, "q1": critic.nets[0], "q2": critic.nets[1]}
        networks |= {"q1_target": target.nets[0], "q2_target": target.nets[1]}
        named = {}
        for network, layers in networks.items():
            for i, layer in enumerate(x for x in layers if isinstance(x, nn.Linear)):
                named[f"{network}/dense{i}/kernel"] = layer.weight
                named[f"{network}/dense{i}/bias"] = layer.bias
        named["actor/log_std_multiplier"] = actor.log_std_multiplier
        named["actor/log_std_offset"] = actor.log_std_offset
        named["log_alpha"] = self.agent.log_alpha
        if self.args.lagrange_gap is not None:
            named["log_alpha_prime"] = self.agent.log_lagrange
        return named

    def learning_rate(self, name: str) -> float:
        policy = name == "log_alpha" or name.startswith("actor/")
        return self.settings["policy_lr" if policy else "qf_lr"]

    def noise(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        size, act = self.batch.actions.shape
        many = (size, self.args.n_actions, act)
        shapes = dict(eps_pi=(size, act), eps_current=many, eps_next=many, u_random=many)
        for name, shape in shapes.items():
            if draws[name].shape != shape:
                raise Unusable(f"{name} has the shape {tuple(draws[name].shape)}, not {shape}")
        return {
            "actor": draws["eps_pi"][:, None],
            "target": draws["eps_next_target"].reshape(size, -1, act),  # or (size, act)
            "policy": torch.stack([draws["eps_current"], draws["eps_next"]], 1),
            "random": draws["u_random"],
        }

    def losses(self, noise: dict[str, Tensor]) -> tuple[dict, dict]:
        """Losses by the names of the fixtures, and the metrics that the script logs."""
        critic, metrics = self.agent.critic_losses(self.batch, noise)
        actor, actor_metrics = self.agent.actor_losses(self.batch, noise)
        named = {"policy_loss": actor["actor"], "alpha_loss": actor["alpha"]}
        named |= {"qf1_loss": critic["critic"][0], "qf2_loss": critic["critic"][1]}
        return named | {"alpha_prime_loss": critic["lagrange"]}, metrics | actor_metrics

    def update(self, noise: dict[str, Tensor]) -> None:
        self.agent.update(self.batch, noise)

    def saturated(self, noise: dict[str, Tensor]) -> bool:
        """Whether an action before tanh is beyond 10: torch's softplus is cut off there, which
        moves log-probabilities by up to 2e-9."""
        with torch.no_grad():
            states = torch.stack([self.batch.obs, self.batch.next_obs], 1)[:, :, None]
            mean, log_std = self.agent.actor(states)
            draws = torch.cat([noise["policy"], noise["actor"][:, None].expand(-1, 2, -1, -1)], 2)
            return bool(((mean + log_std.exp() * draws).abs() > 10).any())


def hidden_widths(arrays: Arrays, network: str) -> tuple[int, ...]:
    n_layers = sum(
        re.fullmatch(rf"w0/{network}/dense\d+/bias", name) is not None for name in arrays
    )
    return tuple(len(arrays[f"w0/{network}/dense{i}/bias"]) for i in range(n_layers - 1))


# A new script needs a class like the one above, and its kinds of fixtures here.
FAMILIES = {"cql": Cql, "cal_ql": Cql}
SCRIPTS_OF_KIND = {
    "cql": ("cql",),
    "calql": ("cal_ql",),
    "sac_only": ("cql", "cal_ql"),
    "iql": ("iql",),
    "awac": ("awac",),
}


# --- Updates --------------------------------------------------------------------------------------


def compare_updates(
    script: ModuleType, meta: dict, arrays: Arrays, precision: str
) -> dict[str, Worst]:
    """The worst errors of losses, logged metrics, gradients and weights, over all updates."""
    dtype, exact = PRECISIONS[precision], precision == "f64"

    def tensors(prefix: str) -> dict[str, Tensor]:
        found = section(arrays, prefix).items()
        return {name: torch.tensor(value, dtype=dtype) for name, value in found}

    try:
        problem = FAMILIES[script.__name__](script, meta["settings"], arrays, dtype)
        parameters = problem.parameters()
        set_weights(parameters, tensors("w0/"))
        steps = sorted({int(name.split("/")[0]) for name in section(arrays, "noise/step")})
        noises = {step: problem.noise(tensors(f"noise/step{step}/")) for step in steps}
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise Unusable(f"not complete: {type(error).__name__}: {error}") from error

    worst = {kind: Worst() for kind in ("losses", "metrics", "gradients", "weights")}
    saturated = False  # and ever after: the weights have moved

    def note(kind: str, found: Tensor | np.ndarray, *args, **kwargs) -> None:
        found = found.detach().numpy() if isinstance(found, Tensor) else found
        worst[kind] = worst[kind].and_also(found, *args, **kwargs)

    for step, noise in noises.items():
        saturated = saturated or problem.saturated(noise)
        share = 2e-5 if not exact else 1e-9 if saturated else 1e-12
        losses, metrics = problem.losses(noise)
        for name, value in section(arrays, f"{precision}/step{step}/loss/").items():
            note("losses", losses[name], value, share * abs(value), f"{name}, step {step}")

        local = section(arrays, f"{precision}/step{step}/local/")
        for name, pattern in problem.logged.items():
            if values := [local[key] for key in sorted(local) if re.fullmatch(pattern, key)]:
                mean, scale = np.mean(values, dtype=np.float64), np.abs(values).max()
                where = f"{name}, step {step}"
                note("metrics", metrics[name], mean, share * scale, where, scale=scale)

        problem.update(noise)
        gradients = section(arrays, f"{precision}/step{step}/grad/")
        for name, value in gradients.items():
            # In float32 an array may nearly vanish beside the others of its network.
            network = name.split("/")[0]
            peers = gradients if not exact else [name]
            scale = max(np.abs(gradients[k]).max() for k in peers if k.split("/")[0] == network)
            share = 1e-5 if not exact else 1e-8 if saturated else 1e-12
            found, where = as_stored(name, parameters[name].grad), f"{name}, step {step}"
            note("gradients", found, value, share * scale, where, scale=scale)

        for name, value in section(arrays, f"{precision}/step{step}/w/").items():
            share = 1e-3 * step if not exact else 1e-8 if step > 1 or saturated else 1e-11
            rounding = 4 * (2.0**-52 if exact else 2.0**-24) * np.abs(value)
            allowed = share * problem.learning_rate(name) + rounding
            found = as_stored(name, parameters[name])
            note("weights", found, value, allowed, f"{name}, step {step}")
    return worst


def set_weights(parameters: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    unknown = set(weights) - set(parameters) - {"log_alpha_prime"}  # untrained without Lagrange
    if unknown:
        raise Unusable(f"its weights {sorted(unknown)} have no counterpart in the script")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = weights[name].T if name.endswith("kernel") else weights[name]
            if value.shape != parameter.shape:
                raise Unusable(f"{name} has the shape {tuple(weights[name].shape)}")
            parameter.copy_(value)


def as_stored(name: str, tensor: Tensor) -> np.ndarray:
    """Fixtures have kernels as (in, out)."""
    array = tensor.detach().numpy()
    return array.T if name.endswith("kernel") else array


# --- Episodes and returns -------------------------------------------------------------------------


def return_cases(arrays: Arrays) -> list[str]:
    cases = {"/".join(name.split("/")[:2]) for name in arrays if name.count("/") > 1}
    return sorted(cases)


def check_returns(script: ModuleType, meta: dict, arrays: Arrays, case: str) -> Worst:
    """One case of return_to_go.npz: what the script makes of episodes, as the buffer holds it."""
    kind, name = case.split("/")
    if kind not in ("calc", "stream", "online"):
        raise NotOffered(f"{case}: demonstrations of Adroit are no format that the scripts read")
    case_meta, arrays = meta[kind][name], section(arrays, f"{case}/")
    args = args_of_case(script, case_meta)
    if kind == "calc":  # one episode
        raw, terminals = arrays["raw_rewards"], arrays["terminals"]
        nothing = np.zeros((len(raw), 1), np.float32)
        rows = script.pack(args, nothing, nothing, raw, nothing, terminals)
        names, reference = (None, None, "rewards", None, "terminals", "mc_returns"), arrays
        widths = [1] * 6
    elif kind == "stream":  # a dataset
        data = section(arrays, "in/")
        # Two differences, both on purpose. The authors clip any action, the scripts refuse one that
        # is outside the box beyond rounding. Without timeouts the authors count steps up to the
        # environment's limit; the scripts want the ends of episodes marked in the data.
        data["actions"] = data["actions"].clip(-1, 1)
        if "timeouts" not in data:
            data["timeouts"] = timeouts_of(data["terminals"], case_meta["max_episode_steps"])
        obs_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
        box = gym.spaces.Box(-1, 1, (action_dim,))
        env = SimpleNamespace(observation_space=gym.spaces.Box(-np.inf, np.inf, (obs_dim,)))
        env.env = SimpleNamespace(action_space=box)
        rows = script.load_episodes(args, data, env)
        names = "observations actions rewards next_observations terminals mc_returns".split()
        reference, widths = section(arrays, "out/"), [obs_dim, action_dim, 1, obs_dim, 1, 1]
    else:  # episodes played
        agent = SimpleNamespace(device="cpu", act=lambda obs, generator: torch.zeros(1))
        rows = []
        for key in sorted({key.split("/")[1] for key in arrays if key.startswith("in/")}):
            episode, _ = script.run_episode(agent, Scripted(case_meta, arrays, f"in/{key}"), seed=0)
            rows.append(script.pack(args, *episode))
        rows, widths = torch.cat(rows), [1] * 6
        names = (None, None, "rewards", None, "dones", "mc_returns")
        reference = section(arrays, "out/buffer/")
    worst = Worst()
    for name, column in zip(names, rows.split(widths, 1)):
        if name:
            value = np.float64(reference[name])
            found = column.numpy() if value.ndim == 2 else column[:, 0].numpy()
            worst = worst.and_also(found, value, 1e-6 * np.abs(value).max(), name)
    return worst


def args_of_case(script: ModuleType, case_meta: dict):
    """What counts as failure follows from the environment's name, as in the scripts' table."""
    row = script.SETTINGS.get(case_meta["env"].split("-")[0], {})
    failure = row.get("failure_reward") if case_meta.get("is_sparse_reward", True) else None
    settings = {key: case_meta[key] for key in ("gamma", "reward_scale", "reward_bias")}
    return script.Args(failure_reward=failure, **settings)


def timeouts_of(terminals: np.ndarray, max_episode_steps: int) -> np.ndarray:
    timeouts, steps = np.zeros(len(terminals), bool), 0
    for i, terminal in enumerate(terminals):
        timeouts[i] = steps == max_episode_steps - 1
        steps = 0 if terminal or timeouts[i] else steps + 1
    return timeouts


class Scripted:
    """An environment that plays a given episode; the state is the step's number."""

    def __init__(self, case_meta: dict, arrays: Arrays, prefix: str):
        names = ("raw_rewards", "env_done", "goal_achieved")
        self.rewards, done, self.goals = (arrays[f"{prefix}/{name}"] for name in names)
        # The environments of Adroit end at the goal; the authors' sampler does it for them.
        self.done = done | self.goals if case_meta["use_goal"] else done
        self.limit = case_meta["max_episode_steps"]

    def reset(self, seed=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        t, self.t = self.t, self.t + 1
        info = {"goal_achieved": bool(self.goals[t])}
        over = bool(self.done[t]), self.t == self.limit
        return np.full(1, self.t, np.float32), float(self.rewards[t]), *over, info


# --- Command line ---------------------------------------------------------------------------------


def read(path: str) -> tuple[dict, Arrays]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(str(arrays.pop("meta"))), arrays
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unusable(f"not a fixture: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Unusable(f"a broken file: {error}") from error


def check(script: ModuleType, path: str) -> int:
    """Compares one fixture, prints the result, and returns the exit status."""
    try:
        meta, arrays = read(path)
        if "calc" in meta:
            return check_all_returns(script, path, meta, arrays)
        kind = meta.get("kind")
        if kind not in SCRIPTS_OF_KIND:
            raise Unusable(f"not a fixture of any script here: its kind is {kind}")
        if script.__name__ not in SCRIPTS_OF_KIND[kind]:
            right = " and ".join(f"{name}.py" for name in SCRIPTS_OF_KIND[kind])
            raise Unusable(f"of the kind {kind}, which belongs to {right}")
        precisions = [p for p in PRECISIONS if section(arrays, f"{p}/")]
        if not precisions:
            raise Unusable("it has no results, neither f32 nor f64")
        status = 0
        for precision in precisions:
            worst = compare_updates(script, meta, arrays, precision)
            errors = ", ".join(f"{kind} {error.relative:.1e}" for kind, error in worst.items())
            beyond = [(k, error) for k, error in worst.items() if not error.excess <= 1]
            verdict = "; ".join(f"{k} ({e.where}): {e.excess:.1e} tolerances" for k, e in beyond)
            print(f"{path} {precision}: {errors}: {'BEYOND: ' + verdict if beyond else 'ok'}")
            status = 1 if beyond else status
        return status
    except NotOffered as reason:
        print(f"{path}: not offered, not compared: {reason}")
        return 0
    except Unusable as reason:
        print(f"{path}: not usable with {script.__name__}.py: {reason}")
        return 2


def check_all_returns(script: ModuleType, path: str, meta: dict, arrays: Arrays) -> int:
    status, largest = 0, 0.0
    for case in return_cases(arrays):
        try:
            worst = check_returns(script, meta, arrays, case)
            largest = max(largest, worst.relative)
            if not worst.excess <= 1:
                print(f"{path} {case}: {worst.where} {worst.relative:.1e}: BEYOND")
                status = 1
        except NotOffered as reason:
            print(f"{path}: not offered, not compared: {reason}")
        except Unusable as reason:
            print(f"{path} {case}: BEYOND: {reason}")
            status = 1
    print(f"{path}: returns and rows {largest:.1e}: {'BEYOND' if status else 'ok'}")
    return status


def main(argv: list[str]) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("script")
    parser.add_argument("fixtures", nargs="+")
    options = parser.parse_args(argv)
    try:
        script = load_script(options.script)
    except FileNotFoundError as error:
        parser.error(str(error))
    if script.__name__ not in FAMILIES:
        parser.error(f"{script.__name__}.py: nothing is known about fixtures for it")
    return max([check(script, path) for path in options.fixtures])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
