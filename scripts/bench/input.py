"""Images/s of the streamed input, up to augmented images on the device, against bare JPEG decoding on the same cores.

The images are generated: smooth colour with noise, 500x375, JPEG of quality 95, about 100 kB, like ImageNet's. Bare
decoding is `Image.open(path).convert("RGB")` of whole images in one thread per core, keeping nothing. A second baseline
adds the same random crop and resize, which separates the stream's own cost from Pillow's.
"""

import contextlib
import itertools
import resource
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from linseed.scripts.bench.turns import in_turns, ratio
from linseed.trainer.data.augment import make_augment
from linseed.trainer.data.decode import decode_random_crop
from linseed.trainer.data.grain_stream import Stream
from linseed.trainer.data.sources.folder_stream import folder_stream
from linseed.trainer.runtime.machine import cores

_BATCH = 64
_EPOCHS = 16


def measure(*, images: int, rounds: int) -> dict:
    """images: how many files, at least a batch of 64; rounds: of turns.

    A turn is `_EPOCHS` epochs. The stream's turn opens and closes it, so it decodes nothing in another turn; images
    prefetched before closing count against it. Decoding is in threads: processes take seconds to start. Peak memory is
    this process's, after each turn of the stream.
    """
    with tempfile.TemporaryDirectory() as root:
        paths = write_photographs(Path(root), images)
        source = folder_stream(
            root=root,
            image_size=224,
            resize=256,
            train_crop="random_resized_crop",
            test_fraction=0.2,
            split_seed=0,
            on_bad_image="error",
            workers=0,
        )
        steps = _EPOCHS * images // _BATCH
        paths = (paths * _EPOCHS)[: steps * _BATCH]
        augment = make_augment("flip_lr(0.5)")
        on_device = jax.jit(lambda keys, images: augment(keys, images.astype("float32") / 255.0))
        keys = jax.random.split(jax.random.key(0), _BATCH)
        stream = Stream(source.train, seed=0, batch_size=_BATCH, workers=0)
        peaks = []

        def stream_turn():
            with contextlib.closing(stream.batches(0)) as batches:
                for batch in itertools.islice(batches, steps):
                    done = on_device(keys, batch["image"])  # replaces the previous one: kept, all would fill memory
                done.block_until_ready()
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            return done

        with ThreadPoolExecutor(cores()) as pool:
            calls = {
                "stream": stream_turn,
                "bare": lambda: list(pool.map(_decode, paths)) and None,
                "bare_crop_and_resize": lambda: list(pool.map(_decode_and_crop, paths)) and None,
            }
            times = in_turns(calls, rounds=rounds)
    return {
        "images": images,
        "batch": _BATCH,
        "rounds": rounds,
        "images_per_second": {name: round(len(paths) / statistics.median(found.wall)) for name, found in times.items()},
        "peak_mib_by_turn": peaks,
        "ratio_to_decode_crop_and_resize": round(ratio(times["bare_crop_and_resize"].wall, times["stream"].wall), 3),
        "ratio": round(ratio(times["bare"].wall, times["stream"].wall), 3),
        "ratio_is": "images/s of the stream over images/s of bare full decoding on as many threads as cores",
    }


def write_photographs(root: Path, count: int) -> list[str]:
    """Makes `count` JPEG files in class folders, two of them also as the test split; returns the train paths."""
    paths = []
    for i in range(count):
        rng = np.random.default_rng(i)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        pixels = np.asarray(coarse) + rng.normal(0.0, 6.0, (375, 500, 3))
        for name in ("train", "test") if i < 2 else ("train",):
            path = root / name / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=95)
        paths.append(str(root / "train" / f"class{i % 2}" / f"{i}.jpg"))
    return paths


def _decode(path):
    with Image.open(path) as image:
        image.convert("RGB")


def _decode_and_crop(path):
    decode_random_crop(path, image_size=224, rng=np.random.default_rng(0))
