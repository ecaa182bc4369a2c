"""Attention in plain operations, or fused so that the weights never reach memory.

Plain, a layer writes and reads its logits, [B, heads, N, N] float32, several times. Fused (FlashAttention, arXiv
2205.14135 and 2307.08691) they stay beside the cores, one block at a time.
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from dualtoken_jax.sharding import BATCH

AttentionKind = Literal["plain", "fused"]
OUTPUT = "fused_attention"  # what a remat policy calls the kernel's output and log-sum-exp, all that its gradient needs
_LANES = 128  # the kernel's blocks are multiples of it
_WHOLE = 768  # tokens; up to here one block takes them all, each array is read once, and it compiles for v5e and v6e


def attend(query: jax.Array, key: jax.Array, value: jax.Array, kind: AttentionKind, causal: bool = False) -> jax.Array:
    """softmax(q kᵀ / √head_dim) v, softmax in float32; all [B, N, heads, head_dim]; with `causal` none sees later ones.

    `fused` is the TPU's splash attention and the GPU's cuDNN; where there is neither (CPU, float32 on a GPU) it is
    the plain form.
    """
    platform = _platform() if kind == "fused" else None
    if platform == "tpu":
        return splash_attention(query, key, value, causal)
    if platform == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16):
        return _on_each_device(partial(_cudnn, causal=causal), query.shape[2])(query, key, value)
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal)


def _platform() -> str:
    """What the step is compiled for: the mesh's devices, which need not be here; without a mesh, what is here."""
    # Not jax.lax.platform_dependent: differentiated, it saves what the backward passes of all platforms need.
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _on_each_device(kernel, heads: int):
    """Kernels of Pallas and cuDNN take one device's rows and heads; the partitioner would gather them all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel
    divides = heads % mesh.shape["tensor"] == 0  # otherwise each device of a tensor group takes all heads
    spec = PartitionSpec(*BATCH, None, "tensor" if divides else None, None)
    return jax.shard_map(kernel, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    tokens, odd = query.shape[1], query.shape[1] % 2
    attention = partial(jax.nn.dot_product_attention, implementation="cudnn", is_causal=causal)
    if odd:  # JAX (0.10.2, 0.12.0.1) refuses to differentiate it, taking the empty array in a bias's place for a bias
        query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
        lengths = jnp.full(len(query), tokens, jnp.int32)
        attention = partial(attention, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    return attention(query, key, value)[:, :tokens]


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool = False, interpret: bool = False
) -> jax.Array:
    """The same by JAX's Pallas kernel for TPUs; `interpret` runs it anywhere, slowly."""

    def local(query, key, value):
        rows, tokens, heads, width = query.shape
        block = min(_WHOLE, _up(tokens, _LANES))
        padded = _up(tokens, block)

        def stacked(x):  # rows as more heads, which share one mask: → [B·heads, padded, head_dim]
            x = jnp.pad(x, ((0, 0), (0, padded - tokens), (0, 0), (0, 0)))
            return x.transpose(0, 2, 1, 3).reshape(rows * heads, padded, width)

        scaled = query * jnp.asarray(width**-0.5, query.dtype)
        out = _kernel(rows * heads, padded, block, causal, interpret)(
            *map(stacked, (scaled, key, value)), segment_ids=_segments(tokens, padded)
        )
        return out.reshape(rows, heads, padded, width).transpose(0, 2, 1, 3)[:, :tokens]

    return _on_each_device(local, query.shape[2])(query, key, value)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple


def _segments(tokens: int, padded: int) -> splash.SegmentIds | None:
    """Padding attends to itself: nothing real sees it, and no row of its own is empty."""
    if tokens == padded:
        return None
    ids = (jnp.arange(padded) >= tokens).astype(jnp.int32)
    return splash.SegmentIds(ids, ids)


def _kernel(heads: int, tokens: int, block: int, causal: bool, interpret: bool):
    blocks = dict.fromkeys(("block_q", "block_kv", "block_q_dkv", "block_kv_dkv"), block)
    # The lanes hold tokens: a head's 72 channels would be padded to 128 in memory, and XLA lays them so anyhow.
    layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), splash.QKVLayout.SEQ_MINOR)
    # Fused: the gradients of queries and keys come from one look at the weights.
    sizes = splash.BlockSizes(use_fused_bwd_kernel=True, **blocks, **layouts)
    one = masks.CausalMask if causal else masks.FullMask
    mask = masks.MultiHeadMask([one((tokens, tokens))] * heads)
    return splash.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=OUTPUT, interpret=interpret
    )
