"""Compares a script with numbers of the authors' own code.

    python tests/parity.py SCRIPT FIXTURE.npz [...]

SCRIPT is cal_ql, cal_ql.py or a path. A fixture holds weights, a batch, the noise of some updates
(IQL needs none without dropout) and what the reference made of them in float32 and float64: losses,
values on the way, gradients and weights (`meta` names source and settings). The script's own code
does the same updates, and the largest relative errors are printed, with a verdict. return_to_go.npz
holds episodes and what the reference made of them; the script's loading of data and its returns do
the same, but for terminals that the authors' code loses (see with_the_authors_ends).

Exit status 0: all within the tolerances, or a fixture asks for a setting that the scripts
deliberately do not offer, which is named. 1: beyond the tolerances. 2: a file that cannot be used,
be it damaged or made to do harm: pickles are not read, and of what is read no more than the file's
size and a few updates of small networks justify.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from types import FrameType, ModuleType, SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scripts import ROOT, load_script, rows_of_dataset, stand_in
from torch import Tensor, nn

sys.path.append(str(ROOT))  # where a script lies, and so on its path too

from benchmarks.data.convert.from_adroit import adroit_rows

Arrays = dict[str, np.ndarray]
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}
# What a file may ask for; beyond that it is damaged, or is to fill the memory or to take for ever.
MOST_EXPANSION = 100  # bytes of arrays per byte of the file; random numbers take more, not less
MOST_STEPS = 1000  # updates
MOST_NUMBERS = 2**22  # that one layer gives for all actions of a batch


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


class Problem:
    """A script's agent and batch, and its numbers by the names that fixtures have for them."""

    fixed = {}  # what the authors can set and the scripts cannot, on purpose: name -> value here
    reasons = {}  # what that means, where the name does not tell
    coarse = {}  # values that a script has in float32 whatever its precision: name -> error allowed
    unseen = ()  # columns that no loss sees, so that fixtures do not have them

    @classmethod
    def of(cls, script: ModuleType, settings: dict, arrays: Arrays, dtype) -> "Problem":
        for name, value in cls.fixed.items():
            found = settings.get(name, value)
            found = float(found) if isinstance(value, float) else found  # "-inf" is a text in JSON
            if found != value:
                reason = f" ({cls.reasons[name]})" if name in cls.reasons else ""
                raise NotOffered(f"{name}={found}, here always {value}{reason}")
        arrays = dict(arrays)
        for name in cls.unseen:
            arrays[f"batch/{name}"] = np.zeros_like(arrays["batch/rewards"])
        if "batch/masks" in arrays:
            arrays["batch/dones"] = 1 - arrays["batch/masks"]
        names = ("observations", "actions", "rewards", "next_observations", "dones", "mc_returns")
        columns = [torch.tensor(arrays[f"batch/{name}"], dtype=dtype) for name in names]
        batch = script.Batch(*(x if x.ndim == 2 else x[:, None] for x in columns))
        args = script.Args(**cls.flags(settings, arrays))
        widths = (*args.actor_hidden, *args.critic_hidden, *getattr(args, "value_hidden", ()), 1)
        size = len(batch.obs) * (1 + 3 * getattr(args, "n_actions", 1)) * max(widths)
        if size > MOST_NUMBERS:
            raise Unusable(f"too large: {size} numbers in a layer, at most {MOST_NUMBERS}")
        agent = script.Agent(args, batch.obs.shape[1], batch.actions.shape[1], "cpu").to(dtype)
        return cls(agent, batch)

    @classmethod
    def flags(cls, settings: dict, arrays: Arrays) -> dict:
        """The script's flags. Sizes are read off the arrays: any file of the format will do."""
        raise NotImplementedError

    def __init__(self, agent: nn.Module, batch: tuple[Tensor, ...]):
        self.agent, self.args, self.batch = agent, agent.args, batch
        self.magnified = {}  # loss or value -> by how much the roundings of numbers grow in it

    def parameters(self, **more_networks: nn.Sequential) -> dict[str, Tensor]:
        critic, target = self.agent.critic.nets, self.agent.critic_target.nets
        networks = dict(actor=self.agent.actor.net, q1=critic[0], q2=critic[1])
        networks |= dict(q1_target=target[0], q2_target=target[1]) | more_networks
        named = {}
        for network, layers in networks.items():
            for i, layer in enumerate(x for x in layers if isinstance(x, nn.Linear)):
                named[f"{network}/dense{i}/kernel"] = layer.weight
                named[f"{network}/dense{i}/bias"] = layer.bias
        return named

    def learning_rate(self, name: str) -> float:
        """What a step moves a parameter by, at most about; slow critics follow the others."""
        network = name.split("/")[0]
        if network in ("actor", "log_alpha"):
            return self.args.actor_lr
        return self.args.value_lr if network == "v" else self.args.critic_lr

    def noise(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the script's update is given as its noise."""
        raise NotImplementedError

    def update(self, noise: dict[str, Tensor]) -> tuple[dict, dict]:
        """Does an update; returns the script's losses and its values on the way."""
        raise NotImplementedError

    def pairs(self, values: dict, local: Arrays) -> Iterator[tuple]:
        """(name, the script's, the reference's, scale of errors) for each value that both have."""
        for name in [name for name in values if name in local]:
            found, wanted = values[name].detach().numpy(), local[name]
            # Scalars are columns in the script: (B, 1) is (B,) here.
            found = found.reshape(wanted.shape) if found.size == wanted.size else found
            yield name, found, wanted, np.abs(wanted).max()

    def saturated(self, noise: dict[str, Tensor]) -> bool:
        """Whether torch has less than its usual precision here."""
        return False


class Cql(Problem):
    """cql.py and cal_ql.py."""

    fixed = dict(
        use_cql=True,
        alpha_multiplier=1.0,
        use_automatic_entropy_tuning=True,
        backup_entropy=False,
        cql_temp=1.0,
        cql_clip_diff_min=-np.inf,
        cql_clip_diff_max=np.inf,
        rng="shared",
    )
    reasons = dict(rng="one noise for all five losses")
    coarse = {"calibration/rate": 2.0**-23}
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

    @classmethod
    def flags(cls, settings: dict, arrays: Arrays) -> dict:
        action_dim = arrays["batch/actions"].shape[1]
        return dict(
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

    def parameters(self) -> dict[str, Tensor]:
        named, actor = super().parameters(), self.agent.actor
        named["actor/log_std_multiplier"] = actor.log_std_multiplier
        named["actor/log_std_offset"] = actor.log_std_offset
        named["log_alpha"] = self.agent.log_alpha
        if self.args.lagrange_gap is not None:
            named["log_alpha_prime"] = self.agent.log_lagrange
        return named

    def noise(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        size, act = self.batch.actions.shape
        many = (size, self.args.n_actions, act)
        shapes = dict(eps_pi=(size, act), eps_current=many, eps_next=many, u_random=many)
        check_shapes(draws, shapes)
        return {
            "actor": draws["eps_pi"][:, None],
            "target": draws["eps_next_target"].reshape(size, -1, act),  # or (size, act)
            "policy": torch.stack([draws["eps_current"], draws["eps_next"]], 1),
            "random": draws["u_random"],
        }

    def update(self, noise: dict[str, Tensor]) -> tuple[dict, dict]:
        """All losses are of the old weights. The values on the way are the metrics of the log."""
        critic, metrics = self.agent.critic_losses(self.batch, noise)
        actor, actor_metrics = self.agent.actor_losses(self.batch, noise)
        losses = {"policy_loss": actor["actor"], "alpha_loss": actor["alpha"]}
        losses |= {"qf1_loss": critic["critic"][0], "qf2_loss": critic["critic"][1]}
        losses["alpha_prime_loss"] = critic["lagrange"]
        self.agent.update(self.batch, noise)
        return losses, metrics | actor_metrics

    def pairs(self, values: dict, local: Arrays) -> Iterator[tuple]:
        for name, pattern in self.logged.items():
            if parts := [local[key] for key in sorted(local) if re.fullmatch(pattern, key)]:
                mean = np.mean(parts, dtype=np.float64)
                yield name, values[name].detach().numpy(), mean, np.abs(parts).max()

    def saturated(self, noise: dict[str, Tensor]) -> bool:
        """Whether an action before tanh is beyond 10: torch's softplus is cut off there, which
        moves log-probabilities by up to 2e-9."""
        with torch.no_grad():
            states = torch.stack([self.batch.obs, self.batch.next_obs], 1)[:, :, None]
            mean, log_std = self.agent.actor(states)
            draws = torch.cat([noise["policy"], noise["actor"][:, None].expand(-1, 2, -1, -1)], 2)
            return bool(((mean + log_std.exp() * draws).abs() > 10).any())


class AdvantageWeighted(Problem):
    """What iql.py and awac.py share. Their networks learn one after the other, the later ones from
    what the earlier have just become: the losses and values are those of an update under way."""

    fixed = dict(state_dependent_std=False, tanh_squash_distribution=False)
    unseen = ("mc_returns",)

    @classmethod
    def flags(cls, settings: dict, arrays: Arrays) -> dict:
        return dict(
            gamma=settings["discount"],
            tau=settings["tau"],
            actor_hidden=hidden_widths(arrays, "actor"),
            critic_hidden=hidden_widths(arrays, "q1"),
            actor_lr=settings["actor_lr"],
            critic_lr=settings["critic_lr"],
        )

    def parameters(self, **more_networks: nn.Sequential) -> dict[str, Tensor]:
        named = super().parameters(**more_networks)
        return named | {"actor/log_stds": self.agent.actor.log_std}

    def watched_update(self, noise: dict[str, Tensor]) -> tuple[dict, dict, dict[str, dict]]:
        """Losses and values that both scripts have, and what they are made of: the variables of the
        agent's methods, each as it returned from its last call, as a debugger would show them."""
        seen = {}

        def watch(frame: FrameType, event: str, result) -> None:
            if event == "return" and frame.f_locals.get("self") is self.agent:
                seen[frame.f_code.co_name] = {**frame.f_locals, "return": result}

        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            metrics = self.agent.update(self.batch, noise)
        finally:
            sys.setprofile(before)
        critic = seen["critic_loss"]
        q1, q2 = critic["q_data"]
        # The log has the mean of the critics' two losses, the reference their sum.
        losses = dict(critic_loss=2 * metrics["loss/td"], actor_loss=metrics["loss/actor"])
        losses |= dict(q1=q1.mean(), q2=q2.mean())
        values = dict(q1_pred=q1, q2_pred=q2, td_target=critic["target_q"])
        return losses, values, seen

    def magnify(self, seen: dict[str, dict], advantage: Tensor, rate: float) -> None:
        """A difference of two values has the rounding errors of the values, however small it is,
        and an exponential makes them relative ones: exp(rate (A + error))."""
        q, y = seen["critic_loss"]["q_data"], seen["critic_loss"]["target_q"]
        size = max(x.abs().max().item() for x in (q, y))
        actor = seen["actor_loss"]
        terms = actor["weights"] * actor["pi"].log_prob(self.batch.actions).sum(-1, keepdim=True)
        one_sided = (terms.abs().sum() / terms.sum().abs()).item()
        self.magnified = {
            "adv": size / advantage.abs().max().item(),
            "weights": rate * size,
            "exp_a": rate * size,
            "actor_loss": rate * size * one_sided,
            "value_loss": 2 * size / advantage.square().mean().sqrt().item(),
            "critic_loss": 2 * size / (q - y).square().mean().sqrt().item(),
        }


class Iql(AdvantageWeighted):
    """iql.py."""

    fixed = AdvantageWeighted.fixed | dict(opt_decay_schedule=None)
    reasons = dict(opt_decay_schedule="the policy's learning rate stays the same")

    @classmethod
    def flags(cls, settings: dict, arrays: Arrays) -> dict:
        flags = super().flags(settings, arrays)
        flags |= dict(value_hidden=hidden_widths(arrays, "v"), value_lr=settings["value_lr"])
        flags |= dict(expectile=settings["expectile"], beta=settings["temperature"])
        return flags | dict(dropout=settings.get("dropout_rate") or 0.0)

    def parameters(self) -> dict[str, Tensor]:
        return super().parameters(v=self.agent.value)

    def noise(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        widths = self.args.actor_hidden if self.args.dropout else ()
        names = [f"dropout_keep_layer{i}" for i in range(len(widths))]
        check_shapes(draws, {name: (len(self.batch.obs), n) for name, n in zip(names, widths)})
        return {f"dropout{i}": draws[x] / (1 - self.args.dropout) for i, x in enumerate(names)}

    def update(self, noise: dict[str, Tensor]) -> tuple[dict, dict]:
        agent, batch = self.agent, self.batch
        with torch.no_grad():
            v = agent.value(batch.obs)
            q1_target, q2_target = agent.critic_target(batch.obs, batch.actions[:, None])
        losses, values, seen = self.watched_update(noise)
        losses |= dict(v=v.mean(), value_loss=seen["update"]["return"]["loss/value"])
        values |= dict(v_before=v, q1_target_net=q1_target, q2_target_net=q2_target)
        actor = seen["actor_loss"]
        self.magnify(seen, actor["advantage"], self.args.beta)
        values |= dict(adv=actor["advantage"], exp_a=actor["weights"])
        values["log_probs"] = actor["pi"].log_prob(batch.actions).sum(-1)
        with torch.no_grad():
            values |= dict(v_after=agent.value(batch.obs), next_v_after=agent.value(batch.next_obs))
        return losses, values


class Awac(AdvantageWeighted):
    """awac.py."""

    fixed = AdvantageWeighted.fixed | dict(source="jaxrl", target_update_period=1)
    reasons = dict(source="CORL weights by min(exp(A / lambda), 100) and squashes no mean")

    @classmethod
    def flags(cls, settings: dict, arrays: Arrays) -> dict:
        flags = super().flags(settings, arrays)
        eps = arrays["noise/step1/eps_pi"]
        flags |= dict(n_actions=len(eps) if eps.ndim == 3 else 1)
        return flags | dict(awac_lambda=settings["beta"], weight_decay=settings["weight_decay"])

    def noise(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        size, act = self.batch.actions.shape
        many = draws["eps_pi"] if draws["eps_pi"].ndim == 3 else draws["eps_pi"][None]
        draws = dict(eps_next=draws["eps_next"], eps_pi=many)
        check_shapes(draws, dict(eps_next=(size, act), eps_pi=(self.args.n_actions, size, act)))
        return {"target": draws["eps_next"], "actor": many.movedim(0, 1)}

    def update(self, noise: dict[str, Tensor]) -> tuple[dict, dict]:
        losses, values, seen = self.watched_update(noise)
        critic, actor = seen["critic_loss"], seen["actor_loss"]
        self.magnify(seen, actor["advantage"], 1 / self.args.awac_lambda)
        values |= dict(v=actor["v"], adv=actor["advantage"], weights=actor["weights"])
        values["next_actions"] = critic["next_actions"]
        values["pi_actions"] = actor["policy_actions"].movedim(1, 0)
        values["log_probs"] = actor["pi"].log_prob(actor["actions"]).sum(-1)
        return losses, values


def check_shapes(draws: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if draws[name].shape != shape:
            raise Unusable(f"{name} has the shape {tuple(draws[name].shape)}, not {shape}")


def hidden_widths(arrays: Arrays, network: str) -> tuple[int, ...]:
    """As its biases and kernels tell: an agent is as large as they are, whatever else is said."""
    n_layers = sum(
        re.fullmatch(rf"w0/{network}/dense\d+/bias", name) is not None for name in arrays
    )
    width = arrays["batch/observations"].shape[1]
    width += 0 if network in ("actor", "v") else arrays["batch/actions"].shape[1]
    widths = []
    for layer in (f"{network}/dense{i}" for i in range(n_layers)):
        shape = (width, width := len(arrays[f"w0/{layer}/bias"]))
        if (found := arrays[f"w0/{layer}/kernel"].shape) != shape:
            raise Unusable(f"the kernel of {layer} has the shape {found}, not {shape}")
        widths.append(width)
    return tuple(widths[:-1])


# A new script needs a class like those above, and its kinds of fixtures here.
FAMILIES = {"cql": Cql, "cal_ql": Cql, "iql": Iql, "awac": Awac}
SCRIPTS_OF_KIND = {
    "cql": ("cql",),
    "calql": ("cal_ql",),
    "sac_only": ("cql", "cal_ql"),
    "iql": ("iql",),
    "awac": ("awac",),
}


# The loss that trains a network, where its rounding errors may be magnified.
LOSS_OF = dict(actor="actor_loss", v="value_loss", q1="critic_loss", q2="critic_loss")


# --- Updates --------------------------------------------------------------------------------------


def compare_updates(
    script: ModuleType, meta: dict, arrays: Arrays, precision: str
) -> dict[str, Worst]:
    """The worst errors of losses, values on the way, gradients and weights, over all updates."""
    dtype, exact = PRECISIONS[precision], precision == "f64"
    rounding = 4 * (2.0**-52 if exact else 2.0**-24)

    def tensors(prefix: str) -> dict[str, Tensor]:
        found = section(arrays, prefix).items()
        return {name: torch.tensor(value, dtype=dtype) for name, value in found}

    try:
        problem = FAMILIES[script.__name__].of(script, meta["settings"], arrays, dtype)
        parameters = problem.parameters()
        set_weights(parameters, tensors("w0/"))
        # By the last result: noise is not always needed, and a step may have no results.
        last = max(int(name.split("/")[0]) for name in section(arrays, f"{precision}/step"))
        if last > MOST_STEPS:
            raise Unusable(f"it has {last} steps, at most {MOST_STEPS}")
        steps = range(1, last + 1)
        noises = {step: problem.noise(tensors(f"noise/step{step}/")) for step in steps}
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise Unusable(f"not complete: {one_line(error)}") from error

    worst = {kind: Worst() for kind in ("losses", "values", "gradients", "weights")}
    saturated = False  # and ever after: the weights have moved
    unsure = {}  # parameter -> share of its first gradient that may be an error

    def note(kind: str, found: Tensor | np.ndarray, *args, **kwargs) -> None:
        found = found.detach().numpy() if isinstance(found, Tensor) else found
        worst[kind] = worst[kind].and_also(found, *args, **kwargs)

    for step, noise in noises.items():
        saturated = saturated or problem.saturated(noise)
        share = 2e-5 if not exact else 1e-9 if saturated else 1e-12
        losses, values = problem.update(noise)
        more = {name: rounding * factor for name, factor in problem.magnified.items()}
        for name, value in section(arrays, f"{precision}/step{step}/loss/").items():
            if name not in losses:
                raise Unusable(f"its loss {name} has no counterpart in the script")
            allowed = (share + more.get(name, 0)) * abs(value)
            note("losses", losses[name], value, allowed, f"{name}, step {step}")

        local = section(arrays, f"{precision}/step{step}/local/")
        for name, found, value, scale in problem.pairs(values, local):
            allowed = max(share + more.get(name, 0), problem.coarse.get(name, 0)) * scale
            note("values", found, value, allowed, f"{name}, step {step}", scale=scale)

        gradients = section(arrays, f"{precision}/step{step}/grad/")
        for name, value in gradients.items():
            # In float32 an array may nearly vanish beside the others of its network.
            network = name.split("/")[0]
            peers = gradients if not exact else [name]
            scale = max(np.abs(gradients[k]).max() for k in peers if k.split("/")[0] == network)
            share = 1e-5 if not exact else 1e-8 if saturated else 1e-12
            share += more.get(LOSS_OF.get(network), 0)
            found = parameters[name].grad  # none where no loss reaches the parameter
            found = torch.zeros_like(parameters[name]) if found is None else found
            found, where = as_stored(name, found), f"{name}, step {step}"
            note("gradients", found, value, share * scale, where, scale=scale)
            if step == 1:
                unsure[name] = share * scale / (np.abs(value) + 1e-8)  # Adam's own epsilon

        for name, value in section(arrays, f"{precision}/step{step}/w/").items():
            # Adam divides a gradient by its size: where that is tiny, it makes errors large.
            share = 1e-3 * step if not exact else 1e-8 if step > 1 or saturated else 1e-11
            share = share + step * unsure.get(name.replace("_target", ""), 0)
            allowed = share * problem.learning_rate(name) + rounding * np.abs(value)
            found = as_stored(name, parameters[name])
            note("weights", found, value, allowed, f"{name}, step {step}")
    return worst


def set_weights(parameters: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    unknown = set(weights) - set(parameters) - {"log_alpha_prime"}  # untrained without Lagrange
    if unknown:
        raise Unusable(f"its weights {sorted(unknown)} have no counterpart in the script")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = weights[name]
            if value.shape != as_stored(name, parameter).shape:
                raise Unusable(f"{name} has the shape {tuple(value.shape)}")
            parameter.copy_(value.T if name.endswith("kernel") else value)


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
    case_meta, arrays = meta[kind][name], section(arrays, f"{case}/")
    args = args_of_case(script, case_meta)
    if kind == "calc":  # one episode
        raw, terminals = arrays["raw_rewards"], arrays["terminals"]
        nothing = np.zeros((len(raw), 1), np.float32)
        rows = script.to_rows(args, script.Episode(nothing, nothing, raw, nothing, terminals))
        names, reference = (None, None, "rewards", None, "terminals", "mc_returns"), arrays
        widths = [1] * 6
    elif kind in ("stream", "hand"):  # a dataset; demonstrations, which become one
        data = section(arrays, "in/")
        limit = case_meta.get("max_episode_steps")
        if kind == "hand":
            data = adroit_rows(demonstrations(data, case_meta))
        else:
            data = with_the_authors_ends(script, data, limit)
        obs_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
        env = stand_in(obs_dim, action_dim=action_dim, limit=limit)
        try:
            with contextlib.redirect_stderr(io.StringIO()) as told:
                rows = rows_of_dataset(script, args, data, env)
        except SystemExit as error:  # refused
            raise Unusable(told.getvalue()) from error
        names = "observations actions rewards next_observations terminals mc_returns".split()
        names[4] = "dones" if kind == "hand" else names[4]
        reference, widths = section(arrays, "out/"), [obs_dim, action_dim, 1, obs_dim, 1, 1]
    else:  # episodes played
        agent = SimpleNamespace(device="cpu", act=lambda obs, generator: torch.zeros(1))
        rows = []
        for key in sorted({key.split("/")[1] for key in arrays if key.startswith("in/")}):
            env = Scripted(case_meta, arrays, f"in/{key}")
            episode = script.play_episode(agent, env, 0, script.StopSignal())
            rows.append(script.to_rows(args, episode))
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


def with_the_authors_ends(script: ModuleType, data: Arrays, limit: int | None) -> Arrays:
    """A dataset whose terminals the scripts treat as the authors' code does.

    The authors leave out a terminal's row where it is a time limit's too, or the file's last. The
    scripts keep it on purpose: a goal that is reached with the last step is reached. Told of these
    rows as time limits alone, they leave them out, too, and all else has to be the same.
    """
    terminals, data = data["terminals"] != 0, dict(data)
    timeouts = data.get("timeouts", script.guess_timeouts(terminals, limit)) != 0
    lost = terminals & timeouts
    lost[-1] |= terminals[-1]
    data["terminals"], data["timeouts"] = terminals & ~lost, timeouts | lost
    return data


def demonstrations(arrays: Arrays, case_meta: dict) -> list[Arrays]:
    """The experts' trajectories, then the others, in the order in which the authors take them."""
    numbered = [("expert", case_meta["n_expert"]), ("bc", case_meta["n_bc"])]
    if max(n for _, n in numbered) > len(arrays):
        raise Unusable(f"{numbered} are more trajectories than are there")
    return [section(arrays, f"{kind}{i}/") for kind, n in numbered for i in range(n)]


def args_of_case(script: ModuleType, case_meta: dict):
    """What counts as failure follows from the environment's name, as in the scripts' table."""
    name, rows = case_meta["env"] + "-", script.SETTINGS.items()
    row = next((settings for begin, settings in rows if name.startswith(begin + "-")), {})
    failure = row.get("failure_reward") if case_meta.get("is_sparse_reward", True) else None
    settings = {key: case_meta[key] for key in ("gamma", "reward_scale", "reward_bias")}
    return script.Args(failure_reward=failure, **settings)


class Scripted:
    """An environment that plays a given episode; the state is the step's number."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))

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
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            entries = file.zip.infolist()
            size = content.seek(0, os.SEEK_END)
            if sum(entry.file_size for entry in entries) > MOST_EXPANSION * size:
                raise ValueError(f"its arrays are more than {MOST_EXPANSION} times its size")
            # zipfile does not compare the number of entries with that in the file's last 22 bytes,
            # and numpy has checksums compared only where it reads an array to its end.
            content.seek(size - 12)
            if int.from_bytes(content.read(2), "little") != len(entries):
                raise ValueError("its directory is damaged")
            if damaged := file.zip.testzip():
                raise ValueError(f"{damaged} is damaged")
            arrays = {name: file[name] for name in file.files}
        for name, array in arrays.items():
            if array.dtype.kind not in "biufU" or not array.size or not name.isprintable():
                raise ValueError(f"{name!r} ({array.dtype}, {array.shape}) holds no numbers")
        return json.loads(str(arrays.pop("meta"))), arrays
    except Exception as error:  # whatever zipfile, zlib, numpy or json may raise about such a file
        raise Unusable(f"not a fixture: {one_line(error)}") from error


def one_line(reason: Exception) -> str:
    """Its text and, where that is not our own, its kind; the text may quote all that a file has."""
    kind = "" if isinstance(reason, Unusable | NotOffered) else f"{type(reason).__name__}: "
    line = " ".join(f"{kind}{reason!s:.300}".split())
    return line.encode("ascii", "backslashreplace").decode()


def check(script: ModuleType, path: str) -> int:
    """Compares one fixture, prints the result, and returns the exit status."""
    try:
        # A number that is inf is beyond; no library shall say more about it.
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            return compare(script, path, *read(path))
    except NotOffered as reason:
        print(f"{path}: not offered, not compared: {one_line(reason)}")
        return 0
    except Exception as reason:  # an array or a setting may have any name, type and shape
        print(f"{path}: not usable with {script.__name__}.py: {one_line(reason)}")
        return 2


def compare(script: ModuleType, path: str, meta: dict, arrays: Arrays) -> int:
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
    found = [compare_updates(script, meta, arrays, precision) for precision in precisions]
    for precision, worst in zip(precisions, found):  # all is done before a line is printed
        errors = ", ".join(f"{kind} {error.relative:.1e}" for kind, error in worst.items())
        beyond = [(k, error) for k, error in worst.items() if not error.excess <= 1]
        verdict = "; ".join(f"{k} ({e.where}): {e.excess:.1e} tolerances" for k, e in beyond)
        print(f"{path} {precision}: {errors}: {'BEYOND: ' + verdict if beyond else 'ok'}")
        status = 1 if beyond else status
    return status


def check_all_returns(script: ModuleType, path: str, meta: dict, arrays: Arrays) -> int:
    status, largest, lines = 0, 0.0, []
    for case in return_cases(arrays):
        try:
            worst = check_returns(script, meta, arrays, case)
            largest = max(largest, worst.relative)
            if not worst.excess <= 1:
                lines.append(f"{path} {case}: {worst.where} {worst.relative:.1e}: BEYOND")
                status = 1
        except NotOffered as reason:
            lines.append(f"{path}: not offered, not compared: {one_line(reason)}")
        except Unusable as reason:
            lines.append(f"{path} {case}: BEYOND: {one_line(reason)}")
            status = 1
    lines.append(f"{path}: returns and rows {largest:.1e}: {'BEYOND' if status else 'ok'}")
    print(*lines, sep="\n")
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
