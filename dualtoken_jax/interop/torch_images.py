"""Pictures → `pixel_values`, exactly as the model's evaluation prepares them: upright, transparency on white, 16 bits
reduced to 8. Ships inside a Hugging Face export.

transformers' own CLIPImageProcessor does the same, except that it rounds the crop's corner down where torchvision,
and with it the training program, rounds to even: a picture whose resized side is odd may come out one pixel off.
"""

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature


class DualTokenImageProcessor(BaseImageProcessor):
    """Shortest side to the model's resolution (bicubic, antialiased), centre crop, [−1, 1]."""

    model_input_names = ["pixel_values"]

    def __init__(self, crop_size: dict, **rest):
        """`crop_size` {"height": R, "width": R}; the rest is for CLIPImageProcessor, which reads the same file."""
        super().__init__(crop_size=crop_size, **rest)
        self.resolution = crop_size["height"]

    def __call__(self, images, return_tensors: str | None = "pt", **_) -> BatchFeature:
        """One picture or a list of them, PIL images or uint8 [H, W, 3] → `pixel_values` [B, 3, R, R] float32."""
        pictures = images if isinstance(images, (list, tuple)) else [images]
        values = np.stack([self._prepared(picture) for picture in pictures])
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    def preprocess(self, images, **rest) -> BatchFeature:
        """As calling it."""
        return self(images, **rest)

    def _prepared(self, picture) -> np.ndarray:
        image = _rgb(picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture)))
        resolution = self.resolution
        (width, height), short = image.size, min(image.size)
        if (width, height) != (resolution, resolution):
            width, height = resolution * width // short, resolution * height // short
            left, top = round((width - resolution) / 2), round((height - resolution) / 2)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + resolution, top + resolution))
        return (np.asarray(image, np.float32) / 127.5 - 1.0).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 (broken EXIF raises all kinds, and says nothing about the pixels)
        pass
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
