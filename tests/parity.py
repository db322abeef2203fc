"""Compares a script with numbers of the authors' own code.

    python tests/parity.py cal_ql FIXTURE.npz [...]

A fixture holds weights, a batch, the noise of three updates and what the reference made of them:
losses, gradients and weights, in float32 and float64 (`meta` names source and settings). The
script's own code does the same three updates; the largest relative errors are printed. Exit status
0: all within the tolerances, or the fixture asks for a setting that the script does not offer,
which is named. 1: beyond them. 2: a file that cannot be used.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"cql": ("cql",), "cal_ql": ("calql",)}  # script -> kinds of fixtures it is to reproduce


def load_script(name: str) -> ModuleType:
    """Imports a script of this repository by its name, with or without .py."""
    path = ROOT / f"{Path(name).stem}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# --- CQL and Cal-QL -------------------------------------------------------------------------------


def not_offered(kind: str, settings: dict) -> str | None:
    """The first setting of a fixture that the scripts deliberately do not have."""
    fixed = {
        "use_cql": True,
        "alpha_multiplier": 1.0,
        "use_automatic_entropy_tuning": True,
        "backup_entropy": False,
        "cql_temp": 1.0,
        "cql_clip_diff_min": "-inf",
        "cql_clip_diff_max": "inf",
        "rng": "shared",
        "target_entropy": -float(settings["act_dim"]),
    }
    for name, value in fixed.items():
        if name in settings and settings[name] != value:
            return f"{name}={settings[name]} (the scripts have {value})"
    return None


def make_agent(script: ModuleType, settings: dict):
    gap = settings["cql_target_action_gap"] if settings["cql_lagrange"] else None
    args = script.Args(
        gamma=settings["discount"],
        tau=settings["soft_target_update_rate"],
        actor_hidden=tuple(settings["policy_arch"]),
        critic_hidden=tuple(settings["qf_arch"]),
        actor_lr=settings["policy_lr"],
        critic_lr=settings["qf_lr"],
        cql_weight=settings["cql_min_q_weight"],
        n_actions=settings["n_actions"],
        importance_sampling=settings["cql_importance_sample"],
        max_target_backup=settings["cql_max_target_backup"],
        lagrange_gap=gap,
    )
    return script.Agent(args, settings["obs_dim"], settings["act_dim"], "cpu")


def parameters(agent) -> dict[str, torch.Tensor]:
    """The agent's parameters by the fixtures' names; kernels are transposed, (in, out)."""
    named = {"actor": agent.actor.net, "q1": agent.critic.nets[0], "q2": agent.critic.nets[1]}
    named |= {"q1_target": agent.critic_target.nets[0], "q2_target": agent.critic_target.nets[1]}
    tensors = {}
    for name, net in named.items():
        for i, layer in enumerate(layer for layer in net if isinstance(layer, torch.nn.Linear)):
            tensors[f"{name}/dense{i}/kernel"] = layer.weight
            tensors[f"{name}/dense{i}/bias"] = layer.bias
    tensors["actor/log_std_multiplier"] = agent.actor.log_std_multiplier
    tensors["actor/log_std_offset"] = agent.actor.log_std_offset
    tensors["log_alpha"], tensors["log_alpha_prime"] = agent.log_alpha, agent.log_lagrange
    return tensors


def numpy(name: str, tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.T if name.endswith("kernel") else array


def make_noise(noise: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    target = noise["eps_next_target"]
    return {
        "actor": noise["eps_pi"][:, None],
        "target": target if target.ndim == 3 else target[:, None],
        "policy": torch.stack([noise["eps_current"], noise["eps_next"]], 1),
        "random": noise["u_random"],
    }


def make_batch(script: ModuleType, batch: dict[str, torch.Tensor]):
    rewards, dones, returns = (batch[k][:, None] for k in ("rewards", "dones", "mc_returns"))
    observations, following = batch["observations"], batch["next_observations"]
    return script.Batch(observations, batch["actions"], rewards, following, dones, returns)


def losses_of(agent, batch, noise) -> dict[str, torch.Tensor]:
    losses = agent.actor_losses(batch, noise)[0] | agent.critic_losses(batch, noise)[0]
    named = {"policy_loss": losses["actor"], "alpha_loss": losses["alpha"]}
    named |= {"qf1_loss": losses["critic"][0], "qf2_loss": losses["critic"][1]}
    return named | {"alpha_prime_loss": losses["lagrange"]}


# --- Comparison -----------------------------------------------------------------------------------


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b| / max |b|; 0 where both are 0 everywhere."""
    error, scale = np.abs(a - b).max(), np.abs(b).max()
    return 0.0 if error == 0 else float(error / scale) if scale > 0 else float("inf")


def compare(script: ModuleType, file: dict[str, np.ndarray], precision: str) -> dict[str, float]:
    """Errors in units of their tolerance, by kind: loss, gradient, weight; above 1 is a failure."""
    meta = json.loads(str(file["meta"]))
    settings = meta["settings"]
    dtype = {"f32": torch.float32, "f64": torch.float64}[precision]
    exact = precision == "f64"

    def part(prefix: str) -> dict[str, torch.Tensor]:
        keys = [key for key in file if key.startswith(prefix)]
        return {key.removeprefix(prefix): torch.tensor(file[key], dtype=dtype) for key in keys}

    agent = make_agent(script, settings).to(dtype)
    tensors, batch = parameters(agent), make_batch(script, part("batch/"))
    missing = set(part("w0/")) - set(tensors)
    if missing:
        raise KeyError(f"weights {sorted(missing)} have no counterpart in {script.__name__}")
    with torch.no_grad():
        for name, value in part("w0/").items():
            tensors[name].copy_(value.T if name.endswith("kernel") else value)
    worst = {"loss": 0.0, "gradient": 0.0, "weight": 0.0}
    for step in (1, 2, 3):
        noise = make_noise(part(f"noise/step{step}/"))
        for name, loss in losses_of(agent, batch, noise).items():
            if f"{precision}/step{step}/loss/{name}" in file:
                reference = file[f"{precision}/step{step}/loss/{name}"]
                error = relative(loss.detach().numpy(), reference) / (1e-9 if exact else 2e-5)
                worst["loss"] = max(worst["loss"], error)
        agent.update(batch, noise)
        gradients, weights = (
            part(f"{precision}/step{step}/grad/"),
            part(f"{precision}/step{step}/w/"),
        )
        scale = {}
        for name, reference in gradients.items():
            network = name.split("/")[0]
            scale[network] = max(scale.get(network, 0.0), reference.abs().max().item())
        for name, reference in gradients.items():
            found = numpy(name, tensors[name].grad)
            error = np.abs(found - reference.numpy()).max()
            allowed = scale[name.split("/")[0]] * (1e-8 if exact else 1e-5)
            worst["gradient"] = max(worst["gradient"], float(error / allowed) if error else 0.0)
        for name, reference in weights.items():
            rate = (
                settings["policy_lr"]
                if name.startswith(("actor", "log_alpha"))
                else settings["qf_lr"]
            )
            rate = settings["qf_lr"] if name == "log_alpha_prime" else rate
            share = {1: 1e-11, 3: 1e-8}.get(step, 1e-8) if exact else 1e-3 * step
            ulp = 2.0**-52 if exact else 2.0**-24
            allowed = share * rate + 4 * ulp * reference.abs().numpy()
            error = np.abs(numpy(name, tensors[name]) - reference.numpy())
            worst["weight"] = max(worst["weight"], float((error / allowed).max()))
    return worst


def check(script_name: str, path: str) -> bool:
    """Compares one fixture in both precisions and prints the result; whether all is well."""
    script = load_script(script_name)
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta"]))
    if reason := not_offered(meta["kind"], meta["settings"]):
        print(f"{path}: not offered: {reason}")
        return True
    good = True
    for precision in ("f64", "f32"):
        worst = compare(script, arrays, precision)
        good = good and max(worst.values()) <= 1
        text = ", ".join(f"{kind} {error:.2g}" for kind, error in worst.items())
        print(f"{path} {precision}: {text} of the tolerance")
    return good


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(0 if all([check(sys.argv[1], path) for path in sys.argv[2:]]) else 1)
