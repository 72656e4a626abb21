"""Images and archives with random damage: each must load or be skipped and counted, in bounded memory and folder."""

import io
import os
import resource
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from linseed.trainer.data.decode import decode_as_it_is, decode_image, decode_random_crop
from linseed.trainer.data.lazy import quiet_pillow
from linseed.trainer.data.sources import cifar_archive
from linseed.trainer.data.sources.folder import folder
from linseed.trainer.data.sources.npz import npz
from linseed.trainer.errors import DataError

ADDRESSES = 3 * 2**30  # bytes of address space beyond a fresh process; threads reserve much and use little
RESIDENT = 2**30  # bytes of memory in use beyond a fresh process

_IMAGES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_CIFAR_RECORD = 1 + 3 * 32 * 32


# All functions that decode bytes to pixels, each with three channels.
_DECODERS: dict[str, Callable] = {
    "decode_image": lambda file: decode_image(file, image_size=0),
    "decode_random_crop": lambda file: decode_random_crop(file, image_size=16, rng=np.random.default_rng(0)),
    "decode_as_it_is": lambda file: decode_as_it_is(file, channels=3),
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with one kind of damage, at a random position."""
    data = bytearray(content)
    place, size = int(rng.integers(len(data))), int(rng.integers(1, 64))
    kind = rng.integers(7)
    if kind == 0:  # bits
        for spot in rng.integers(0, len(data), size % 8 + 1):
            data[spot] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place : place + size] = bytes(size)
    elif kind == 3:
        data[place:place] = rng.bytes(size)
    elif kind == 4:
        del data[place : place + size]
    elif kind == 5:  # a large number, mostly in the header
        place = int(rng.integers(min(64, len(data)))) if rng.random() < 0.7 else place
        data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x23\x28"])
    else:
        data[place : place + size] = data[: size // 2] + rng.bytes(size)
    return bytes(data)


def _image(format, rng):
    pixels = rng.integers(0, 256, (int(rng.integers(4, 40)), int(rng.integers(4, 40)), 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def _npz(rng, *, compressed):
    images = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    arrays = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays, class_names=np.array(["a", "b", "c"]))
    return file.getvalue()


def _tar(rng):
    """A CIFAR-like archive, with members that are links or would land outside the folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("folder/data.bin", "../outside.bin", "/tmp/outside.bin"):
            content = rng.bytes(2 * _CIFAR_RECORD)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("folder/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "../../outside.bin"
        archive.addfile(link)
    return file.getvalue()


def _read_npz(path):
    source = npz(path=str(path))
    source.open_test()


def _read_tar(path):
    for content in cifar_archive.read(path, ["folder/data.bin"]).values():
        list(cifar_archive.records(content, num_labels=1))


# How to make and read each kind of archive.
_ARCHIVES: dict[str, tuple[Callable, Callable]] = {
    "npz": (lambda rng: _npz(rng, compressed=False), _read_npz),
    "npz compressed": (lambda rng: _npz(rng, compressed=True), _read_npz),
    "tar": (_tar, _read_tar),
}


def try_inputs(count: int, *, seed: int, bounded: bool) -> dict:
    """Makes and reads `count` mutated inputs, half of them images, and returns figures.

    bounded: limits the address space of this process, permanently. Returns "inputs", "loaded", "skipped" (images listed
    by the source, archives refused by a DataError), "failures" (one line each) and "resident_mb", the peak memory
    beyond that at the start.
    """
    rng = np.random.default_rng(seed)
    before = _memory("VmRSS")
    if bounded:
        limit = _address_space() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch)
        inside = outside / "data"
        inside.mkdir()
        images = count - count // 2
        loaded, skipped, failures = _try_images(inside / "images", images, rng)
        for number in range(count // 2):
            kind = list(_ARCHIVES)[number % len(_ARCHIVES)]
            make, read = _ARCHIVES[kind]
            path = inside / f"{number}"
            path.write_bytes(mutated(make(rng), rng))
            try:
                read(path)
                loaded += 1
            except DataError as error:
                skipped += 1
                if "\n" in str(error):
                    failures.append(f"{kind} {number}: more than one line: {error}")
            except Exception as error:
                failures.append(f"{kind} {number}: {type(error).__name__}: {error}")
        beside = [path for path in outside.iterdir() if path != inside]
        failures += [
            f"{path} was written outside the folder" for path in (*beside, Path("/tmp/outside.bin")) if path.exists()
        ]
    resident = _memory("VmHWM") - before
    if resident > RESIDENT:
        failures.append(f"{resident / 2**20:.0f} MB of memory in use")
    return {
        "inputs": count,
        "loaded": loaded,
        "skipped": skipped,
        "failures": failures,
        "resident_mb": round(resident / 2**20),
    }


def _try_images(root, count, rng):
    """(loaded, skipped, failures) of `count` mutated images next to two sound ones of each class."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"sound{number}.png").write_bytes(_image("PNG", rng))
    formats, failures = list(_IMAGES), []
    quiet_pillow()
    for number in range(count):
        format = formats[number % len(formats)]
        # Sometimes under the extension of another format: the first bytes decide, not the name.
        ending = _IMAGES[formats[int(rng.integers(len(formats)))]] if rng.random() < 0.2 else _IMAGES[format]
        path = root / "ab"[number % 2] / f"{number:04}.{ending}"
        content = mutated(_image(format, rng), rng)
        path.write_bytes(content)
        failures += [f"{path.name}: {line}" for line in _decode_by_all(content)]
    try:
        source = folder(root=str(root), image_size=16, test_fraction=0.2, split_seed=0, on_bad_image="skip")
        test = source.open_test()
    except Exception as error:
        return 0, 0, [*failures, f"images: {type(error).__name__}: {error}"]
    in_test = 2 * round(0.2 * (count / 2 + 2))
    loaded = len(source.train.labels) + len(test.labels) - 4
    skipped = len(source.skipped) + in_test - len(test.labels)
    if loaded + skipped != count:
        failures.append(f"images: {loaded} loaded and {skipped} skipped of {count}")
    return loaded, skipped, failures


def _decode_by_all(content):
    """A line for each decoder that returned no image and raised no error in bounded memory."""
    for name, decode in _DECODERS.items():
        try:
            pixels = decode(io.BytesIO(content))
        except MemoryError:
            yield f"{name}: out of memory"
        except Exception:  # the decoders' errors for damaged bytes
            continue
        else:
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                yield f"{name}: {pixels.dtype} {pixels.shape} is not an image"


def _memory(kind):
    """Bytes of this process: "VmRSS" now, "VmHWM" peak; the peak of `getrusage` would include the time before exec."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{kind}:"))


def _address_space():
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
