"""What the tests share: the scripts of this repository, their text, and a small agent to try."""

import importlib.util
import os
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))  # a script added later is tested too
CQL_FAMILY = [name for name in ("cql", "cal_ql") if name in SCRIPTS]
BANNER = "# ==== Part II"

# Numbers of the authors' code: those in the repository, and all in $PARITY_DIR where it is set.
OWN_FIXTURES = ROOT / "tests" / "fixtures"
FIXTURES = sorted(OWN_FIXTURES.glob("*.npz"))
if "PARITY_DIR" in os.environ:
    FIXTURES += sorted(Path(os.environ["PARITY_DIR"]).glob("*.npz"))


def text_of(name: str) -> str:
    return (ROOT / f"{name}.py").read_text()


def load_script(name: str) -> ModuleType:
    """Imports a script by its name, with or without .py, or by its path."""
    path = Path(name) if Path(name).is_file() else ROOT / f"{Path(name).stem}.py"
    return _load(path.resolve())


@cache
def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def randn(*shape: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_problem(script: ModuleType, dtype=torch.float64, batch_size=6, **settings):
    """An agent, a batch and noise, small enough to work out by hand; the same for every script.

    Weights are random, not the initial ones: the targets differ from the critics, no output is
    near 0, and of the twins now one and now the other is the lower. In float64, for comparisons
    that are sharp.
    """
    obs_dim, action_dim = 4, 2
    known = {field.name for field in fields(script.Args)}
    sizes = dict(actor_hidden=(8,), critic_hidden=(8, 8), value_hidden=(8,), n_actions=3)
    settings = {name: value for name, value in sizes.items() if name in known} | settings
    args = script.Args(batch_size=batch_size, **settings)
    agent = script.Agent(args, obs_dim, action_dim, "cpu").to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(agent.parameters(), 270):  # where the twins cross
            parameter.copy_(0.4 * randn(*parameter.shape, seed=seed, dtype=dtype))
    columns = dict(
        obs=randn(batch_size, obs_dim, seed=100, dtype=dtype),
        actions=randn(batch_size, action_dim, seed=101, dtype=dtype).tanh(),
        rewards=randn(batch_size, 1, seed=102, dtype=dtype),
        next_obs=randn(batch_size, obs_dim, seed=103, dtype=dtype),
        terminations=(torch.arange(batch_size) % 3 == 1).to(dtype)[:, None],
        mc_returns=randn(batch_size, 1, seed=104, dtype=dtype),
    )
    return agent, script.Batch(**columns), noise_for(agent, seed=0, dtype=dtype)


def noise_for(agent, seed: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    noise = agent.draw(agent.args.batch_size, torch.Generator().manual_seed(seed))
    return {name: value.to(dtype) for name, value in noise.items()}
