"""Attention written out: projections, two matrix products and a softmax, in place of one operator that hides them.

    nn.MultiheadAttention, F.scaled_dot_product_attention:  softmax(q @ k^T * size^-0.5 + mask) @ v

PyTorch keeps both as one opaque call, in which no fake quantizer can be placed; its transformer layers decide by the
values that they see which kernel to run, which no tracer can follow. The parameters stay the same numbers.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """`nn.MultiheadAttention` on batches of sequences, its packed projection split into `q`, `k` and `v`."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        if source.in_proj_weight is None:
            weights = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        else:
            weights = source.in_proj_weight.chunk(3)
        biases = (None, None, None) if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = linear(source.out_proj.weight, source.out_proj.bias)
        self.dropout = nn.Dropout(source.dropout)
        self.heads, self.size, self.batch_first = source.num_heads, source.head_dim, source.batch_first
        # of the masks, as example calls have them: while the network is traced nothing says what they hold
        self.boolean, self.per_head = {"attn_mask": False, "key_padding_mask": False}, False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The result, and the weights of [N,L,S] (or of each head) where they are asked for."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        scores = torch.matmul(q, k.transpose(2, 3)) * self.size**-0.5
        if attn_mask is not None:
            boolean = self._is_boolean("attn_mask", attn_mask)
            mask = attn_mask.unflatten(0, (-1, self.heads)) if self.per_head else attn_mask
            scores = hidden(scores, mask, boolean)
        if key_padding_mask is not None:
            boolean = self._is_boolean("key_padding_mask", key_padding_mask)
            scores = hidden(scores, key_padding_mask.unsqueeze(1).unsqueeze(1), boolean)
        weights = torch.softmax(scores, -1)
        result = self.out_proj(torch.matmul(self.dropout(weights), v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        return result, weights.mean(1) if average_attn_weights else weights

    def _is_boolean(self, name: str, mask: Tensor) -> bool:
        if isinstance(mask, Tensor):  # and not something that stands for one
            self.boolean[name] = not mask.is_floating_point()
            if name == "attn_mask":
                self.per_head = mask.ndim == 3
        return self.boolean[name]

    def _split(self, x: Tensor) -> Tensor:
        """[N,L,heads*size] -> [N,heads,L,size]."""
        return x.unflatten(2, (self.heads, self.size)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` without the choice of kernels."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.self_attn = source.self_attn  # written out on its own
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.norm1, self.norm2, self.norm_first = source.norm1, source.norm2, source.norm_first
        self.dropout, self.dropout1, self.dropout2 = source.dropout, source.dropout1, source.dropout2
        self.activation = source.activation

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The result for `src`, same shape."""

        def attend(x: Tensor) -> Any:
            options = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "need_weights": False}
            return self.dropout1(self.self_attn(x, x, x, **options)[0])

        def feed(x: Tensor) -> Any:
            return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

        result: Tensor
        if self.norm_first:
            src = src + attend(self.norm1(src))
            result = src + feed(self.norm2(src))
        else:
            src = self.norm1(src + attend(src))
            result = self.norm2(src + feed(src))
        return result


class Encoder(nn.Module):
    """`nn.TransformerEncoder` without the choice of kernels."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = source.layers, source.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """The result for `src`, same shape."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        result: Tensor = src if self.norm is None else self.norm(src)
        return result


def scaled_dot_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    boolean: bool,
    dropout: Callable[[Tensor], Tensor],
) -> Tensor:
    """`F.scaled_dot_product_attention`: `q` [...,L,E], `k` [...,S,E], `v` [...,S,V] -> [...,L,V].

    `mask`, of a shape that broadcasts to [...,L,S], is True for what counts where it is `boolean`, else it is added.
    """
    scores = torch.matmul(q, k.transpose(-2, -1)) * scale
    if mask is not None:
        scores = hidden(scores, torch.logical_not(mask) if boolean else mask, boolean)
    return torch.matmul(dropout(torch.softmax(scores, -1)), v)


def hidden(scores: Tensor, mask: Tensor, boolean: bool) -> Tensor:
    """Scores without what a mask hides: where it is True, or minus infinity and added."""
    return scores.masked_fill(mask, float("-inf")) if boolean else scores + mask


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with copies of these as its parameters."""
    result = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    result.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        result.bias = nn.Parameter(bias.detach().clone())
    return result
