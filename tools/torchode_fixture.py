"""Solve a probability flow by torchode and write what it finds, for our tests to agree with.

    pip install --no-deps --target /tmp/torchode torchode torchtyping "typeguard<3"
    PYTHONPATH=/tmp/torchode python tools/torchode_fixture.py

torchode (Lienen & Günnemann 2022) solves a batch of ODEs with steps of each item's own. It needs a typeguard older than the one that tyro
needs, so that the two cannot be installed together. tests/evaluation/test_ode.py reads torchode.json:

    inner, outer        weights and biases of a network v(z, γ) = W₂ tanh(W₁ [z, −0.3 γ] + b₁) + b₂
    ends                γ at the data and at the noise
    x (N, D)            items
    nelbo (N,)          −ln p(x) of MATH (31): the flow starts at α(γ_1) x and ends in N(0, I)
    steps (N,)          accepted steps of each item
    torchode, torch     versions
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import torch
import torchode  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

OUT = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "torchode.json"
D, N, ENDS = 3, 6, (-7.0, 6.0)


def main() -> None:
    torch.manual_seed(0)
    inner, outer = nn.Linear(D + 1, 5).double(), nn.Linear(5, D).double()
    x = torch.randn(N, D, dtype=torch.float64)

    def slope(z: Tensor, gamma: Tensor) -> Tensor:
        """dz/dγ = α' x̂ + σ' ε̂ = ½ α σ v̂, for α² = sigmoid(−γ) and σ² = sigmoid(γ)."""
        v = outer(torch.tanh(inner(torch.cat([z, -0.3 * gamma[None]]))))
        return 0.5 * torch.sigmoid(-gamma).sqrt() * torch.sigmoid(gamma).sqrt() * v

    def both(gamma: Tensor, state: Tensor) -> Tensor:
        z = state[:, :D]
        trace = torch.func.vmap(torch.func.jacrev(slope))(z, gamma).diagonal(dim1=1, dim2=2).sum(1)
        return torch.cat([torch.func.vmap(slope)(z, gamma), trace[:, None]], 1)

    log_alpha = -0.5 * math.log1p(math.exp(ENDS[0]))
    start = torch.cat([math.exp(log_alpha) * x, torch.zeros(N, 1, dtype=torch.float64)], 1)
    term = torchode.ODETerm(both)
    method = torchode.Tsit5(term=term)
    solver = torchode.AutoDiffAdjoint(method, torchode.IntegralController(atol=1e-11, rtol=1e-10, term=term))
    times = torch.tensor(ENDS, dtype=torch.float64).expand(N, 2)
    with torch.no_grad():
        found = solver.solve(torchode.InitialValueProblem(y0=start, t_eval=times))
    end = found.ys[:, -1]
    last = -0.5 * end[:, :D].square().sum(1) - 0.5 * D * math.log(2 * math.pi)
    record = {
        "torchode": version("torchode"),
        "torch": torch.__version__,
        "ends": list(ENDS),
        "inner": [inner.weight.tolist(), inner.bias.tolist()],
        "outer": [outer.weight.tolist(), outer.bias.tolist()],
        "x": x.tolist(),
        "nelbo": (-(last + end[:, D] + D * log_alpha)).tolist(),
        "steps": found.stats["n_accepted"].tolist(),
    }
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
