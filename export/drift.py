"""Where in a network a coarser precision loses its way: each block's output against the same block's in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from export.gate import LIMITS, all_photos, inputs_of, questions
from export.parity import Exported, checkpoint
from export.precision import written_in
from model.layers import DecoderBlock, EncoderBlock


def where_it_drifts(network: Exported, precision: str, side: int) -> str:
    """From which block on a forward pass of two views in `precision` is further from that in float32 than half of the
    points may be in the end; a clause for a message. Blocks are called as their parameters are.

    side: of the squares that it is shown, in pixels.
    """
    config = network.config
    paths = getattr(config, "paths", 1)
    question = questions(config.network, side, oblong=False, paths=paths, max_views=2)[0]
    inputs = inputs_of(question, all_photos(side))
    bound = LIMITS[precision].median
    expected = outputs_of_blocks(network, inputs)
    got = outputs_of_blocks(written_in(network, precision), inputs)
    errors = {name: float((got[name] - wide).norm() / wide.norm()) for name, wide in expected.items()}
    for name, error in errors.items():
        if not error <= bound:  # also where it is not a number
            last, final = list(errors.items())[-1]
            return f"it drifts from {name} on, by {error:.1e} there and {final:.1e} after {last}"
    return f"no block of encoder or decoder drifts by more than {bound:.1e}: its heads do"


def outputs_of_blocks(network: Exported, inputs: list[NDArray[Any]]) -> dict[str, Tensor]:
    """What every block of encoder and decoder answers in a forward pass, by its name, in the order they compute: the
    last time where it is called for each view."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs[name] = output.float()

    starts = {"encoder.patch_embed": network.encoder.patch_embed, "decoder.embed": network.decoder.embed}
    blocks = {
        name: module for name, module in network.named_modules() if isinstance(module, EncoderBlock | DecoderBlock)
    }
    handles = [module.register_forward_hook(partial(keep, name)) for name, module in (starts | blocks).items()]
    try:
        checkpoint(network)(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
