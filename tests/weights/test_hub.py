"""The hub's client against a server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import os
import threading

import huggingface_hub.constants
import pytest
import safetensors.numpy
from support.pretrained import tensors_of

from linseed.trainer.errors import DataError
from linseed.trainer.weights import find, hub

COMMIT, OLD = "a" * 40, "b" * 40
CARD = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "input_size": [3, 288, 288],
        "crop_pct": 0.95,
        "interpolation": "bilinear",
        "crop_mode": "squash",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "license": "apache-2.0",
    },
}


class Hub(http.server.ThreadingHTTPServer):
    """files: (name, path) -> content. Large files are elsewhere: the answer redirects there."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked, self.break_after, self.lies = {}, [], None, False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server = self.server
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/blobs/"):
            return self._blob(server.files[self.path.removeprefix("/blobs/")], body)
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        known = {name.partition(":")[0] for name in server.files}
        content = server.files.get(f"{repository}:{file}")
        headers = {"X-Repo-Commit": OLD if revision == OLD else COMMIT}
        if repository not in known:
            return self._say(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT, OLD):
            return self._say(404, {"X-Error-Code": "RevisionNotFound"})
        if content is None:
            return self._say(404, {"X-Error-Code": "EntryNotFound", **headers})
        sha = hashlib.sha256(content).hexdigest()
        if file.endswith(".json"):
            return self._say(200, {"ETag": f'"{sha[:40]}"', **headers}, content if body else b"", length=len(content))
        # Of another host, as the hub's: to the same one its client takes a redirect for a new name of the repository.
        place = f"{server.url.replace('127.0.0.1', 'localhost')}/blobs/{repository}:{file}"
        self._say(302, {"Location": place, "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content)), **headers})

    def _blob(self, content, body):
        if self.server.lies:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        rest = content[start:]
        if body and self.server.break_after:
            sent, self.server.break_after = rest[: self.server.break_after], None
            self._say(200, {}, sent, length=len(rest))
            self.close_connection = True
            return self.connection.close()
        self._say(206 if start else 200, {}, rest if body else b"", length=len(rest))

    def _say(self, status, headers, content=b"", length=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content) if length is None else length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def tensors():
    return {key: values.copy() for key, values in tensors_of("resnet18", classes=10).items()}


@pytest.fixture
def server(tensors, tmp_path, monkeypatch):
    with Hub() as server:
        server.files["timm/small:config.json"] = json.dumps(CARD).encode()
        server.files["timm/small:model.safetensors"] = safetensors.numpy.save(tensors)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refusal(name="timm/small"):
    with pytest.raises(DataError) as caught:
        find.find(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_come_with_their_card_and_pinned_to_a_commit(server, tensors):
    found = find.find("timm/small")
    assert found.card.name == f"timm/small@{COMMIT}" and found.card.architecture == "resnet18"
    assert found.card.licence == "apache-2.0"
    assert found.card.input == (288, 0.95, "bilinear", (0.5,) * 3, (0.25,) * 3, "stretch")
    assert found.tensors.keys() == tensors.keys()
    assert any(path.startswith("/blobs/") for _, path, _ in server.asked)  # it followed the redirect


def test_a_commit_in_the_cache_needs_no_network(server):
    find.find("timm/small")
    server.asked.clear()
    assert find.find(f"timm/small@{COMMIT}").card.name == f"timm/small@{COMMIT}" and not server.asked
    server.shutdown()
    server.server_close()
    assert find.find("timm/small").card.name == f"timm/small@{COMMIT}"  # the newest that is known


def test_a_revision_is_taken(server):
    assert find.find(f"timm/small@{OLD}").card.name == f"timm/small@{OLD}"


def test_a_download_that_breaks_off_is_taken_up(server, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    server.break_after = 1_000_000
    assert find.find("timm/small").card.architecture == "resnet18"
    assert any(sent for _, _, sent in server.asked)  # a second request, for the rest


def test_a_file_that_is_not_what_the_hub_says_is_refused(server):
    server.lies = True
    said = refusal()
    assert "is damaged, its sha256 is not the hub's; delete" in said
    blob = said.partition("; delete ")[2].partition(" and run")[0]
    os.unlink(blob)
    server.lies = False
    assert find.find("timm/small").card.architecture == "resnet18"  # the cure works


def test_no_network_and_nothing_in_the_cache(server, monkeypatch):
    server.shutdown()
    server.server_close()
    said = refusal()
    assert "not in the cache" in said and "cannot be reached" in said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache" in refusal()


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "set HF_HOME to a folder that can be written" in refusal()


def test_names_that_the_hub_does_not_have(server):
    assert "the hub has no 'timm/other'" in refusal("timm/other")
    assert "'timm/small' has no revision 'v9'" in refusal("timm/small@v9")
    del server.files["timm/small:model.safetensors"]
    assert "has no config.json with model.safetensors or pytorch_model.bin" in refusal()


def test_a_card_that_is_none_or_of_a_network_that_is_not_here(server):
    server.files["timm/small:config.json"] = b'{"model_type": "bert"}'
    assert "names no architecture of timm" in refusal()
    server.files["timm/other:config.json"] = json.dumps({"architecture": "resnet18x"}).encode()
    server.files["timm/other:model.safetensors"] = b""
    assert "is a resnet18x, which is not among the networks here; near: resnet18" in refusal("timm/other")
    server.files["timm/odd:config.json"] = json.dumps({**CARD, "pretrained_cfg": {"mean": "grey"}}).encode()
    server.files["timm/odd:model.safetensors"] = server.files["timm/small:model.safetensors"]
    assert "says no sizes or statistics that can be read" in refusal("timm/odd")


def test_names_of_the_hub_have_an_owner():
    assert hub.NAME.fullmatch("timm/resnet50.a1_in1k") and hub.NAME.fullmatch("timm/a@v1")
    assert not hub.NAME.fullmatch("resnet50") and not hub.NAME.fullmatch("../a/b")
