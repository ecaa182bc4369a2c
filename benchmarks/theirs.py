"""What is measured of the PyTorch peer: the same questions. Imports nothing of JAX."""

import time
from collections.abc import Callable

import torch

from benchmarks.peer.codebooks import nearest, random_draw
from benchmarks.peer.form import Form
from benchmarks.peer.operators import torchvision_operators
from benchmarks.peer.step import train_step

torchvision_operators()

from benchmarks.peer.build import trainer as build  # noqa: E402


def work(question: str, config: dict, batch: int, form: Form) -> tuple[Callable[[], None], float | None]:
    """A call to time, which returns when the result is there; eager PyTorch compiles nothing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = build(config, form, device)
    run = {"train": train, "encode": encode, "decode": decode}[question](trainer, config, batch, device)

    def call():
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    if not form.compiled:
        return call, None
    start = time.perf_counter()
    call()
    call()
    compiling = time.perf_counter()
    call()
    return call, compiling - start - 2 * (time.perf_counter() - compiling)


def images(config: dict, batch: int, device) -> torch.Tensor:
    """Random pictures [B, 3, R, R] in [−1, 1]."""
    side = config["model"]["siglip"]["image_size"]
    return torch.rand(batch, 3, side, side, device=device) * 2 - 1


def train(trainer, config: dict, batch: int, device) -> Callable[[], None]:
    """The whole step."""
    pictures, draw = images(config, batch, device), random_draw(device)
    return lambda: train_step(trainer, pictures, draw)


def encode(trainer, config: dict, batch: int, device) -> Callable[[], None]:
    """Pictures to the codes of both vocabularies; distances as the form computes them."""
    pictures, model = images(config, batch, device), trainer.model.eval()

    @torch.inference_mode()
    def run():
        with trainer.form.precision(device):
            vectors, _ = model.latents(pictures)
            return {branch: codes(model.quantizer(branch), z, trainer.form) for branch, z in vectors.items()}

    return run


def codes(quantizer, z: torch.Tensor, form: Form) -> torch.Tensor:
    """Codes [N, D] of a residual quantizer."""
    residual, found = z.float().flatten(0, -2), []
    with form.quantizer_precision(z.device):
        for depth in range(quantizer.depth):
            embedding = quantizer.embedding(depth)
            found.append(nearest(residual, embedding, dense=not form.tuned))
            residual = residual - embedding[found[-1]]
    return torch.stack(found, dim=-1)


def decode(trainer, config: dict, batch: int, device) -> Callable[[], None]:
    """Pixel codes to pictures."""
    model, pixel = trainer.model.eval(), config["model"]["pixel"]
    numbers = torch.randint(pixel["codes"], (batch, model.grid, model.grid, pixel["depth"]), device=device)

    @torch.inference_mode()
    def run():
        with trainer.form.precision(device):
            return model.decode(numbers)

    return run


def peak_device_bytes() -> int | None:
    """Of a GPU's memory."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
