"""Mutated pictures, in any number; run by test_fuzz_images.py in a process of its own with little memory.

    python tests/fuzz_images.py COUNT SEED

Prints counts by outcome as JSON. Exits with a traceback when an input takes too long, memory runs out, anything but
BadImage is raised, or the two JPEG decoders disagree.
"""

import faulthandler
import io
import json
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dualtoken_jax.data import images, jpeg
from dualtoken_jax.data.images import BadImage

SECONDS = 20  # for one input, on a machine that does other things too
MEMORY = 3 * 2**30  # of address space beyond what the imports take; libraries, threads and 89 megapixels fit
RESOLUTION = 16


def originals() -> list[bytes]:
    """Small files of every kind that is accepted."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels).resize((61, 47))
    modes = {mode: rgba.convert("RGB").convert(mode) for mode in ("RGB", "L", "CMYK", "P", "1", "I;16")}
    modes |= {"RGBA": rgba, "LA": rgba.convert("LA")}
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []

    def add(mode: str, file_format: str, **options) -> None:
        buffer = io.BytesIO()
        modes[mode].save(buffer, file_format, **options)
        files.append(buffer.getvalue())

    for progressive in (False, True):
        for mode in ("RGB", "L", "CMYK"):
            add(mode, "JPEG", quality=80, progressive=progressive, exif=exif)
        add("RGB", "JPEG", quality=95, progressive=progressive, subsampling="4:4:4", restart_marker_blocks=2)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        add(mode, "PNG", exif=exif)
    add("P", "PNG", transparency=3)
    add("RGB", "PNG", save_all=True, append_images=[modes["RGB"].rotate(90)])
    for mode in ("RGB", "RGBA"):
        add(mode, "WEBP", quality=70)
        add(mode, "WEBP", lossless=True, exif=exif)
    add("RGB", "WEBP", save_all=True, append_images=[modes["RGB"].rotate(180)])
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes, of bits, of lengths, of the header, of segments and chunks."""
    changes = (flip_bits, overwrite, truncate, insert, edit_header, edit_lengths, move_part, repair_checksums)
    for _ in range(rng.integers(1, 5)):
        data = changes[rng.integers(len(changes))](data, rng)
    return data


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, max(len(changed), 1), rng.integers(1, 9))
    changed[places[places < len(changed)]] ^= np.uint8(1 << rng.integers(8))
    return changed.tobytes()


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    at, length = rng.integers(0, len(data) + 1), int(rng.integers(1, 17))
    filler = bytes([int(rng.choice([0, 255, rng.integers(256)]))]) * length
    return data[:at] + filler + data[at + length :]


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data) + 1)]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = rng.integers(0, len(data) + 1)
    return data[:at] + rng.bytes(int(rng.integers(1, 200))) + data[at:]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Extreme numbers among the first bytes, where sizes and depths stand."""
    at = int(rng.integers(8, 64))
    value = int(rng.choice([0, 1, 2, 127, 255, 256, 9433, 16383, 32767, 65535, 2**31 - 1, 2**32 - 1]))
    packed = struct.pack(rng.choice([">I", "<I"]), value) if value > 65535 else struct.pack(
        rng.choice([">H", "<H"]), value
    )  # fmt: skip
    return data[:at] + packed + data[at + len(packed) :]


def edit_lengths(data: bytes, rng: np.random.Generator) -> bytes:
    """The length, or the size in a frame header, of a random JPEG segment, PNG chunk or WebP chunk."""
    if data[:2] == b"\xff\xd8":
        marks = [at for at in range(2, len(data) - 9) if data[at] == 255 and 0xC0 <= data[at + 1] < 0xFF]
        if marks:
            at = marks[rng.integers(len(marks))] + int(rng.choice([2, 5, 7]))
            return data[:at] + struct.pack(">H", int(rng.choice([0, 1, 2, 17, 8000, 65535]))) + data[at + 2 :]
    kinds = [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"fcTL", b"fdAT", b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANMF"]
    found = [at for kind in kinds if (at := data.find(kind)) >= 4]
    if not found:
        return data
    at = found[rng.integers(len(found))] + (-4 if data[:1] == b"\x89" else 4)
    return data[:at] + struct.pack(">I", int(rng.choice([0, 1, 13, 2**16, 2**31 - 1, 2**32 - 1]))) + data[at + 4 :]


def move_part(data: bytes, rng: np.random.Generator) -> bytes:
    """Drops, doubles or moves a stretch of the file."""
    begin, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    part, rest = data[begin:end], data[:begin] + data[end:]
    at = int(rng.integers(0, len(rest) + 1))
    return (rest, data[:end] + part + data[end:], rest[:at] + part + rest[at:])[rng.integers(3)]


def repair_checksums(data: bytes, rng: np.random.Generator) -> bytes:
    """Right CRCs for a PNG's chunks, so that what was changed before reaches the decoder; often compressed anew."""
    if data[:4] != b"\x89PNG":
        return flip_bits(data, rng)
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if kind == b"IDAT" and rng.integers(2):
            body = zlib.compress(rng.bytes(int(rng.integers(0, 20_000))))
        out.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        at += 12 + length
    return b"".join(out)


def outcome(data: bytes, number: int) -> str:
    """ "good", or the reason of the refusal; the same with either JPEG decoder."""
    found = loaded(data, number)
    if data[:3] == b"\xff\xd8\xff" and jpeg.simplejpeg is not None:
        kept, jpeg.simplejpeg = jpeg.simplejpeg, None
        alone, jpeg.simplejpeg = loaded(data, number), kept
        if isinstance(found, str) != isinstance(alone, str) or not np.array_equal(found, alone):
            raise AssertionError(f"the JPEG decoders disagree: {found!r} and, by Pillow alone, {alone!r}")
    return found if isinstance(found, str) else "good"


def loaded(data: bytes, number: int) -> np.ndarray | str:
    decoding = ("exact", "fast")[number % 2]
    try:
        pixels = images.load(data, RESOLUTION, np.random.default_rng(number) if number % 3 else None, decoding)
    except BadImage as error:
        return error.reason
    assert pixels.shape == (RESOLUTION, RESOLUTION, 3) and pixels.dtype == np.uint8
    return pixels


def inputs(count: int, seed: int) -> Iterator[bytes]:
    files = originals()
    for number in range(count):
        yield mutated(files[number % len(files)], np.random.default_rng([seed, number]))


def main(count: int, seed: int) -> None:
    """Feeds `count` inputs to the decoders and prints what became of them."""
    warnings.simplefilter("ignore")
    assert all(outcome(data, number) == "good" for number, data in enumerate(originals()))
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    outcomes: Counter[str] = Counter()
    slowest, begin = 0.0, time.perf_counter()
    for number, data in enumerate(inputs(count, seed)):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        since = time.perf_counter()
        try:
            outcomes[outcome(data, number)] += 1
        except Exception as error:
            raise RuntimeError(f"input {number} of seed {seed}, {len(data)} bytes: {data[:80]!r}…") from error
        slowest = max(slowest, time.perf_counter() - since)
    faulthandler.cancel_dump_traceback_later()
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) / 1024
    seconds = time.perf_counter() - begin
    print(json.dumps({"outcomes": outcomes, "slowest_s": slowest, "peak_mib": peak, "seconds": seconds}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
