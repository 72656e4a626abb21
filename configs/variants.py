"""The part of `--config=FILE:VARIANT` after the colon: `quick`, `root=DIR`, or both with a comma."""


def parse(variant, **known):
    """The values of a variant string, over the defaults in `known`.

    A bare word sets a flag; `key=value` sets a string. Raises ValueError for a word that is not in `known`.
    """
    values = dict(known)
    for part in filter(None, variant.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"unknown config variant '{key}'; known: {', '.join(sorted(known))}")
        if isinstance(known[key], str) != bool(value):
            raise ValueError(f"config variant '{part}': write {key}{'=VALUE' if isinstance(known[key], str) else ''}")
        values[key] = value or True
    return values


def tfds_or_folder(dataset, *, root, image_size):
    """A source section: `dataset` from TensorFlow Datasets, or class folders where `root` is not empty."""
    if root:
        return dict(
            name="folder",
            root=root,
            image_size=image_size,
            test_fraction=0.2,  # where root has no test/
            split_seed=0,
            on_bad_image="error",
        )
    return dict(name="tfds", dataset=dataset, data_dir="", train_split="train", test_split="test")
