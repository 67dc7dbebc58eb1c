"""In which precision a network is written into a graph, and what of it stays in float32 whatever that is.

TensorRT takes a graph's types as they are (strong typing), so they are settled here, before the graph is written, and
every change of type is a cast in it. In the precision asked for: the products of encoder and decoder, attention, and
the convolutions of MV-DUSt3R's skip CNN, which together are nearly all the work. In float32: the sums that every block
adds to (in half precision they gather the rounding of all layers, and may leave its range), the norms, the angles of
RoPE, and all of the heads but that CNN, whose answer counts 1e-4: their exponentials would magnify a coarser rounding.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.contract import ArtifactError
from model.dust3r import PairNetwork
from model.layers import CrossAttention
from model.mvdust3r import MVDUSt3R
from model.noposplat import NoPoSplat

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Of `export.contract.PRECISIONS`."""

N = TypeVar("N", bound=MVDUSt3R | PairNetwork | NoPoSplat)


def written_in(network: N, precision: str) -> N:
    """`network`, which is in eval mode, as it is to be exported in `precision`: inputs and outputs are float32 in any.

    The network itself is left as it is; weights that do not differ are shared. Convolution and batch norm are one.
    Raises ArtifactError where a weight is not finite, or not any more in this precision: the parameter is named.
    """
    _check_finite(network, "is not finite")
    dtype = DTYPES[precision]
    network = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    lowered: list[nn.Module] = [network.encoder, network.decoder]
    if isinstance(network, MVDUSt3R):
        for head in (network.reference_head, network.head):
            layers: Any = head.points.skip_proj
            head.points.skip_proj = nn.ModuleList(fuse_conv_bn_eval(layer.conv, layer.norm) for layer in layers)
            lowered.append(head.points.skip_proj)
    if dtype == torch.float32:
        return network
    for module in (module for part in lowered for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in module.named_parameters():
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
            module.register_forward_pre_hook(partial(_cast, dtype))
        elif isinstance(module, CrossAttention):  # its bias
            module.register_forward_pre_hook(partial(_cast, dtype))
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(partial(_cast, torch.float32))
    for start in (network.encoder.patch_embed, network.decoder.embed):
        start.register_forward_hook(_widen)
    _check_finite(network, f"is beyond what {precision} holds: export in bf16 or fp32")
    return network


def _check_finite(network: nn.Module, complaint: str) -> None:
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"the weight {name} {complaint}")


def _cast(dtype: torch.dtype, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in inputs)


def _widen(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
