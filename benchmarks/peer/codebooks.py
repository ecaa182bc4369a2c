"""Residual quantization with EMA codebooks in PyTorch (METHOD.md section 3); needs torch alone.

`Draw` is a function (vectors available, codes, width) → (positions [codes], uniform noise [codes, width]). `dense` goes
about it as the released code does: all distances at once, and sums by a one-hot matrix of vectors × codes.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Draw = Callable[[int, int, int], tuple[Tensor, Tensor]]
EPSILON = 1e-5  # of the counts
BLOCK = 2**26  # distances that exist at one time where not `dense`


def random_draw(device: torch.device) -> Draw:
    """From torch's generator."""
    return lambda available, codes, width: (
        torch.randperm(available, device=device)[:codes],
        torch.rand(codes, width, device=device),
    )


def quantize_and_update(
    quantizer: nn.Module, z: Tensor, config, draw: Draw, dense: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Straight-through output [B, N, E], commitment and codes [B, N, D]; moves the codebooks.

    `quantizer` is a torch_model.Quantizer, `config` its QuantizerConfig.
    """
    vectors = z.detach().flatten(0, -2)
    residuals, codes, chosen = [], [], []
    for depth in range(config.depth):
        book = quantizer.codebooks[depth % len(quantizer.codebooks)]
        code = nearest(vectors, book.embedding, dense)
        residuals.append(vectors)
        codes.append(code)
        chosen.append(book.embedding[code])
        if config.codebook_update == "per_depth":
            codebook_update(book, vectors, code, config, draw, dense)
        vectors = vectors - chosen[-1]
    if config.codebook_update == "per_step_aliased":
        residuals = [vectors] * config.depth
    if config.codebook_update != "per_depth":
        update_at_once(quantizer.codebooks, residuals, codes, config, draw, dense)
    totals = [total.view_as(z) for total in itertools.accumulate(chosen)]
    commitment = torch.stack([(z - total).square().mean() for total in totals]).mean()
    return z + (totals[-1] - z).detach(), commitment, torch.stack(codes, dim=-1).view(*z.shape[:-1], config.depth)


@torch.no_grad()
def nearest(vectors: Tensor, embedding: Tensor, dense: bool) -> Tensor:
    """Index [N] of the nearest code of `embedding` [K, E]."""
    norms = embedding.square().sum(1)
    if dense:
        distances = vectors.square().sum(1, keepdim=True) + norms - 2 * vectors @ embedding.T
        return distances.argmin(dim=1)
    blocks = vectors.split(max(BLOCK // len(embedding), 1))
    return torch.cat([torch.addmm(norms, block, embedding.T, alpha=-2).argmin(dim=1) for block in blocks])


def update_at_once(books: nn.ModuleList, residuals: list[Tensor], codes: list[Tensor], config, draw, dense) -> None:
    """After the last depth: a shared codebook takes all depths' residuals, others their own."""
    if len(books) == 1:
        residuals, codes = [torch.cat(residuals)], [torch.cat(codes)]
    for book, vectors, code in zip(books, residuals, codes, strict=True):
        codebook_update(book, vectors, code, config, draw, dense)


@torch.no_grad()
def codebook_update(book: nn.Module, vectors: Tensor, codes: Tensor, config, draw: Draw, dense: bool) -> None:
    """EMA statistics of vectors [N, E] with codes [N], restart of dead codes, rewritten embeddings."""
    counts, sums = statistics(vectors, codes, config.codes, dense)
    book.cluster_size_ema.mul_(config.decay).add_(counts, alpha=1 - config.decay)
    book.embed_ema.mul_(config.decay).add_(sums, alpha=1 - config.decay)
    if config.restart_threshold is not None:
        dead = book.cluster_size_ema < config.restart_threshold
        fresh = restart(vectors, config.codes, draw)
        book.embed_ema.copy_(torch.where(dead[:, None], fresh, book.embed_ema))  # no copy to the host to count them
        book.cluster_size_ema.masked_fill_(dead, 1.0)
    total = book.cluster_size_ema.sum()
    smoothed = total * (book.cluster_size_ema + EPSILON) / (total + config.codes * EPSILON)
    book.weight[:-1] = book.embed_ema / smoothed[:, None]


def statistics(vectors: Tensor, codes: Tensor, count: int, dense: bool) -> tuple[Tensor, Tensor]:
    """How many of the vectors [N, E] chose each of `count` codes, and their sums [K, E]."""
    if dense:
        chosen = F.one_hot(codes, count).to(vectors.dtype)  # [N, K]
        return chosen.sum(0), chosen.T @ vectors
    counts = vectors.new_zeros(count).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
    return counts, vectors.new_zeros(count, vectors.shape[1]).index_add_(0, codes, vectors)


def restart(vectors: Tensor, codes: int, draw: Draw) -> Tensor:
    """As many of the vectors [N, E] as there are codes, tiled with a little noise where there are too few."""
    available, width = vectors.shape
    repeats = -(-codes // available)
    positions, noise = draw(repeats * available, codes, width)
    picked = vectors[positions % available]
    return picked + noise.to(vectors) * 0.01 / width**0.5 if repeats > 1 else picked
