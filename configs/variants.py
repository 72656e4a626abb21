"""The part of `--config=FILE:VARIANT` after the colon: `quick`, `root=DIR`, or both with a comma."""


def parse(variant: str, **known):
    """The values of a variant string, over the defaults in `known`.

    A bare word sets a flag; `key=value` sets a string. Raises ValueError for a word that is not in `known`.
    """
    values = dict(known)
    for part in filter(None, variant.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"unknown config variant '{key}'; known: {', '.join(sorted(known))}")
        values[key] = value if isinstance(known[key], str) else True
    return values
