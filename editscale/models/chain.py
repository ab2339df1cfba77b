"""Blocks of a model in a row, by the few kernels of `kernels.blocks` where a GPU has them.

What is not as the family makes it, because it is watched, edited in copies or trained, is left to the family's own
code, with all blocks after it.
"""

from itertools import takewhile

import torch
from transformers import activations

from editscale.kernels import blocks as few
from editscale.kernels import matmul


class Chain(torch.nn.Module):
    """Stands in for the blocks of a model, which it calls one after the other, as one block.

    Args:
        given: a dict that holds, at each call, the mask and the `KeyValues` or None of the forward.
    """

    def __init__(self, blocks, given):
        super().__init__()
        self.blocks, self.given = torch.nn.ModuleList(blocks), given

    def forward(self, hidden, *args, **kwargs):
        rest = list(self.blocks)
        if hidden.dtype == torch.float32 and matmul.takes_blocks(hidden):
            ready = [block for _, block in takewhile(lambda of: of[1], ((b, weights(b, hidden.dtype)) for b in rest))]
            if ready and hidden.numel() // hidden.shape[-1] * max(b.widest for b in ready) <= matmul.LARGEST:
                mask, cache = self.given["mask"], self.given["cache"]
                turns = kwargs.get("position_embeddings")
                hidden, rest = few.run(few.kernels(), ready, hidden, mask, turns, cache), rest[len(ready) :]
        for block in rest:
            hidden = block(hidden, *args, **kwargs)
        return hidden


def weights(block, dtype):
    """The `blocks.Block` of a block, or None if it is not as its family makes it, with frozen weights of this dtype."""
    for module in block.modules():
        if module.training or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
    for weight in block.parameters():
        if weight.requires_grad or weight.dtype != dtype or weight.ndim > 2 or not weight.is_contiguous():
            return None
    found = _READ[type(block).__name__](block)
    return found if found and found.d_head in few.D_HEAD and found.activation else None


def _activation(module):
    if isinstance(module, (activations.NewGELUActivation, activations.GELUTanh)):
        return "gelu"
    return "silu" if isinstance(module, (activations.SiLUActivation, torch.nn.SiLU)) else None


def _gpt2(block):
    attention, mlp = block.attn, block.mlp
    if attention.reorder_and_upcast_attn or hasattr(block, "crossattention"):
        return None
    return few.Block(
        norms=tuple((norm.weight, norm.bias, norm.eps) for norm in (block.ln_1, block.ln_2)),
        qkv=(attention.c_attn.weight.t(),),
        qkv_bias=attention.c_attn.bias,
        out=(attention.c_proj.weight.t(), attention.c_proj.bias),
        up=(mlp.c_fc.weight.t(),),
        up_bias=mlp.c_fc.bias,
        down=(mlp.c_proj.weight.t(), mlp.c_proj.bias),
        heads=(attention.num_heads, 1, attention.scaling),
        activation=_activation(mlp.act),
        layer=attention.layer_idx,
    )


def _llama(block):
    attention, mlp, activation = block.self_attn, block.mlp, _activation(block.mlp.act_fn)
    if attention.q_proj.bias is not None or mlp.up_proj.bias is not None:
        return None
    n_shared = attention.num_key_value_groups
    return few.Block(
        norms=tuple(
            (n.weight, None, n.variance_epsilon) for n in (block.input_layernorm, block.post_attention_layernorm)
        ),
        qkv=(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight),
        qkv_bias=None,
        out=(attention.o_proj.weight, attention.o_proj.bias),
        up=(mlp.gate_proj.weight, mlp.up_proj.weight),
        up_bias=None,
        down=(mlp.down_proj.weight, mlp.down_proj.bias),
        heads=(len(attention.q_proj.weight) // attention.head_dim, n_shared, attention.scaling),
        activation=activation and f"gated {activation}",
        layer=attention.layer_idx,
    )


_READ = {"GPT2Block": _gpt2, "LlamaDecoderLayer": _llama}
FAMILIES = ("gpt2", "llama")  # whose blocks are all called alike
