"""The published weight files that evaluation needs: names, addresses, checksums. Nothing here fetches them."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from dualtoken_jax.interop.files import WeightFileError


class Published(NamedTuple):
    """One file as its authors publish it."""

    name: str
    what: str
    url: str
    digest: str  # SHA-256 in hexadecimal, or its beginning

    def __str__(self) -> str:
        begins = "" if len(self.digest) == 64 else "begins with "
        return f"{self.name}: {self.what}\n{self.url}\nSHA-256 {begins}{self.digest}"


INCEPTION = Published(
    "pt_inception-2015-12-05-6726825d.pth",
    "Inception v3 of FID, released by pytorch-fid",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
)
VGG16 = Published(
    "vgg16-397923af.pth",
    "torchvision's VGG16, the trunk of LPIPS",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
)
LPIPS_LINEAR = Published(
    "vgg.pth",
    "LPIPS v0.1's linear layers, in the lpips package as lpips/weights/v0.1/vgg.pth",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)


def check_digest(path: Path) -> None:
    """Compares a file with the digest that its name carries in torch.hub's manner, NAME-abcdef01.pth, where it does.

    Raises FileNotFoundError, or WeightFileError where they differ.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no weight file {path}")
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if named and path.is_file() and not (found := sha256(path)).startswith(named[1]):
        raise WeightFileError(
            f"{path} has the SHA-256 {found}, and its name says that it begins with {named[1]}: it is damaged, "
            "incomplete or another file; fetch it again"
        )


def sha256(path: Path) -> str:
    """The digest of a file of any size, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
