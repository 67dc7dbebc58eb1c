"""How weights move: Muon for the blocks' matrices, AdamW for the rest, and when they move how far.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix, makes its singular
values about equal with a few Newton-Schulz steps, and goes that way. `torch.optim.Muon` (from torch 2.9 on) turns one
matrix at a time, some 700 small launches a step for the networks here, which a GPU does not hide behind a small
network's step. The same here is done for all matrices of one shape at once, and for queries, keys and values apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 that the post found to bring singular values near 1 soonest."""
STEPS = 5


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Matrices (k, rows, columns) with their singular vectors kept and their singular values brought to 0.7 to 1.2.

    Newton-Schulz in `dtype`; the answer is in it too.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Matrices (rows, columns) by orthogonalised Nesterov momentum, times sqrt(max(1, rows / columns)).

    A parameter called `....qkv.weight` is three matrices. Each group of `params` holds (name, parameter) pairs.
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        pairs = list(named)
        if wrong := [name for name, parameter in pairs if parameter.ndim != 2]:
            raise ValueError(f"Muon moves matrices, and these are none: {', '.join(wrong)}")
        parts = [3 if name.endswith(".qkv.weight") else 1 for name, _ in pairs]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": [parameter for _, parameter in pairs], "parts": parts}], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 (the base class has it)
        for group in self.param_groups:
            moved = [(p, parts) for p, parts in zip(group["params"], group["parts"], strict=True) if p.grad is not None]
            if not moved:
                continue
            for parameter, _ in moved:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            parameters = [parameter for parameter, _ in moved]
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for (parameter, parts), direction in zip(moved, ahead, strict=True):
                for target, part in zip(parameter.chunk(parts), direction.chunk(parts), strict=True):
                    by_shape[part.shape].append((target, part))
            for shape, pairs in by_shape.items():
                directions = orthogonalised(torch.stack([part for _, part in pairs]))
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                targets = [target for target, _ in pairs]
                torch._foreach_mul_(targets, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(targets, list(directions.to(targets[0].dtype).unbind()), alpha=-rate)


def optimisers(
    module: nn.Module, muon: float, adamw: float, weight_decay: float = 0.0
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon at rate `muon` for the matrices of encoder and decoder blocks, AdamW at rate `adamw` for all else.

    What a tensor is for decides, not its shape alone: embeddings and the last layers of heads are no hidden layers.
    A tensor under two names is moved once. muon 0: AdamW for all, as released networks were trained.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    hidden = [(name, p) for name, p in named if muon and p.ndim == 2 and "blocks." in name]
    taken = {name for name, _ in hidden}
    rest = [p for name, p in named if name not in taken]
    # Decoupled decay is of matrices alone: a norm's gain has nothing to shrink to.
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = next(module.parameters()).device.type == "cuda"
    made: list[torch.optim.Optimizer] = [Muon(hidden, muon, weight_decay=weight_decay)] if hidden else []
    made.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=adamw, betas=(0.9, 0.95), fused=fused))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["full_rate"] = group["lr"]
    return tuple(made)


def set_rate(optimisers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Let every group move at this share of its full rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = share * group["full_rate"]


def rate(step: int, done: float, warm_up: int, decay: float) -> float:
    """Share of the full rate at a step: warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395).

    Grows over the first `warm_up` steps, stays, and falls in a line to 0 over the last `decay` of the budget, of which
    `done`, 0 to 1, is spent. A run that is cut, or given more time, had no use of knowing its length before.
    """
    grown = min(1.0, (step + 1) / max(1, warm_up))
    return grown * min(1.0, max(0.0, 1.0 - done) / decay)


class Average:
    """The exponential moving average of a module's weights, which is what is judged and kept.

    Young, it is the mean of what there was: its memory grows to that of `decay` with the steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in floating(module)}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After the step of this number, from 0."""
        kept = min(self.decay, (1 + step) / (10 + step))
        current = [tensor.detach() for _, tensor in floating(module)]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - kept)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, tensor in floating(module):
            tensor.copy_(self.tensors[name])


def floating(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights and running statistics of a module, each once."""
    return [
        (name, tensor)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if tensor.is_floating_point()
    ]


def state_tensors(optimisers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """What optimisers remember, by name: `<optimiser>.<parameter>.<what>`."""
    return {
        f"{index}.{parameter}.{what}": tensor
        for index, optimiser in enumerate(optimisers)
        for parameter, state in optimiser.state_dict()["state"].items()
        for what, tensor in state.items()
    }


def restore(optimisers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Let optimisers remember what `state_tensors` told of equal ones."""
    for index, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            owner, parameter, what = name.split(".", 2)
            if int(owner) == index:
                state[int(parameter)][what] = tensor
        optimiser.load_state_dict(optimiser.state_dict() | {"state": dict(state)})
