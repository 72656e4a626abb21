"""Weights on Hugging Face's hub, by huggingface_hub: its cache, its offline mode and its settings hold here too."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from linseed.trainer.errors import DataError

# OWNER/NAME, and after an @ a revision: a commit, a branch or a tag.
NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w./-]+))?")

_FILES = ("model.safetensors", "pytorch_model.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Fetched(NamedTuple):
    """The weights of a name on the hub: a file and its hash, the repository's config.json, the commit both are of."""

    path: Path
    sha256: str
    config: dict[str, Any]
    commit: str


def fetch(name: str) -> Fetched:
    """The files of `OWNER/NAME` or `OWNER/NAME@REVISION`, from the cache where they are in it.

    The weights are checked against the hash under which the hub keeps them. Raises DataError, one line, where there is
    no such name, no network and nothing in the cache, or the file is not what the hub has.
    """
    from huggingface_hub import errors, hf_hub_download

    repository, revision = NAME.fullmatch(name).groups()
    try:
        config = Path(hf_hub_download(repository, "config.json", revision=revision))
        commit = config.parent.name
        try:
            path = Path(hf_hub_download(repository, _FILES[0], revision=commit))
        except errors.RemoteEntryNotFoundError:
            path = Path(hf_hub_download(repository, _FILES[1], revision=commit))
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"the hub has no '{repository}', or it is not public; check the name, such as timm/resnet50.a1_in1k"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"'{repository}' has no revision '{revision}'; check what is behind the @") from None
    except errors.LocalEntryNotFoundError:
        raise DataError(
            f"'{name}' is not in the cache of the hub's files and the hub cannot be reached; connect this machine, or "
            "fetch the file elsewhere and give its path"
        ) from None
    except errors.EntryNotFoundError:
        raise DataError(f"'{repository}' has no config.json with {' or '.join(_FILES)}; choose another name") from None
    except Exception as error:  # of the network, of HTTP, of the disk: each library below has its own
        raise DataError(
            f"'{name}' cannot be fetched ({type(error).__name__}: {_line(error)}); mend that, set HF_HOME to a folder "
            "that can be written, or fetch the file elsewhere and give its path"
        ) from error
    blob, digest = path.resolve(), sha256(path)
    if _SHA256.fullmatch(blob.name) and digest != blob.name:
        raise DataError(f"{path} is damaged, its sha256 is not the hub's; delete {blob} and run the same command again")
    return Fetched(path, digest, _read_config(config), commit)


def sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config.get("architecture"), str):
            return config
    except (ValueError, AttributeError):
        pass
    raise DataError(f"{path} names no architecture of timm; choose weights that timm publishes, or give a file")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
