"""The files of a run: complete or absent, on the disk in the right order, and never behind a link."""

import os
import shutil

import pytest

from linseed.trainer import files
from linseed.trainer.errors import WorkdirError


@pytest.fixture
def precious(tmp_path):
    """A file of the user's, outside the run's folder."""
    path = tmp_path / "precious"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with files.held(path):
        yield path


@pytest.mark.parametrize("use", [files.read, files.append, files.refuse_links])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_place_of_a_file_is_refused(folder, precious, use, exists):
    target = precious if exists else precious.with_name("new")
    (folder / "a").symlink_to(target)
    with pytest.raises(WorkdirError, match=r"run/a is a link, .*put what it points to in its place, or choose another"):
        use(folder / "a")
    assert target.exists() == exists


def test_a_link_is_replaced_renamed_and_deleted_but_not_followed(folder, precious):
    for name in ("written", "moved", "deleted"):
        (folder / name).symlink_to(precious)
    files.write(folder / "written", "new")
    files.move(folder / "moved", folder / "to")
    files.delete(folder / "deleted")
    assert (folder / "written").read_text() == "new" and not (folder / "written").is_symlink()
    assert (folder / "to").is_symlink() and sorted(os.listdir(folder)) == ["to", "written"]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_below_a_held_one_is_not_reached_through_a_link(folder, tmp_path, depth):
    (tmp_path / "outside" / "inner").mkdir(parents=True)
    (tmp_path / "outside" / "inner" / "a").write_text("precious")
    if depth == 1:
        (folder / "inner").symlink_to(tmp_path / "outside" / "inner")
    else:
        (folder / "outer").symlink_to(tmp_path / "outside")
    inner = folder / "inner" if depth == 1 else folder / "outer" / "inner"
    for use in (
        lambda: files.read(inner / "a"),
        lambda: files.write(inner / "a", "new"),
        lambda: files.append(inner / "a"),
        lambda: files.delete(inner / "a"),
        lambda: files.move(inner / "a", folder / "a"),
        lambda: files.make(inner / "new"),
        lambda: files.sync(inner),
    ):
        with pytest.raises(WorkdirError, match="is a link"):
            use()
    assert [path.name for path in (tmp_path / "outside").rglob("*")] == ["inner", "a"]
    assert (tmp_path / "outside" / "inner" / "a").read_text() == "precious"


def test_the_folder_that_the_user_names_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with files.held(tmp_path / "run"):
        files.write(tmp_path / "run" / "a", "text")
        assert files.read(tmp_path / "run" / "a") == b"text"
    assert (tmp_path / "disk" / "a").read_text() == "text"


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "a")
    for use in (files.read, lambda path: files.append(path)):
        with pytest.raises((WorkdirError, OSError), match="not a plain file|No such device"):
            use(folder / "a")


def test_what_is_written_is_on_the_disk_before_it_has_its_name_and_then_its_name(folder, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(temporary, name, **folders):
        events.append((temporary, name))
        replace(temporary, name, **folders)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write(folder / "a", "text")
    temporary = events[0]
    assert events == [temporary, (temporary, "a"), "run"]
    files.write(folder / "a", "text")
    assert events[3] != temporary  # nobody can put a link where the next one will be
    events.clear()
    files.append(folder / "b").close()
    files.move(folder / "b", folder / "c")
    files.delete(folder / "c")
    files.make(folder / "new")
    assert events == ["run"] * 5


def test_sync_reaches_every_file_and_folder_then_the_name(folder, monkeypatch):
    (folder / "a" / "b").mkdir(parents=True)
    for name in ("1", "a/2", "a/b/3"):
        (folder / name).write_text("")
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    files.sync(folder / "a")
    assert [path.removeprefix(f"{folder}") for path in synced] == ["/a/b/3", "/a/b", "/a/2", "/a", ""]


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(folder, monkeypatch, at):
    files.write(folder / "a", "old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if at == "write":
            patched.setattr(os, "fdopen", fail)
        else:
            patched.setattr(os, at, fail)
        with pytest.raises(OSError):
            files.write(folder / "a", "new")
    assert os.listdir(folder) == ["a"] and files.read(folder / "a") == b"old"


def test_what_a_kill_left_is_deleted_and_nothing_that_looks_like_it(folder):
    for name in (".a.0123456789abcdef.tmp", ".a.tmp", "a.0123456789abcdef.tmp"):
        (folder / name).write_text("")
    files.clean(folder)
    assert sorted(os.listdir(folder)) == [".a.tmp", "a.0123456789abcdef.tmp"]


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
@pytest.mark.parametrize("again", [False, True])
def test_nothing_is_written_into_a_folder_that_is_no_longer_the_one_that_is_held(folder, gone, again):
    gone(folder)
    if again:
        folder.mkdir()
    for use in (files.check, files.make, lambda folder: files.write(folder / "a", ""), lambda f: files.make(f / "b")):
        with pytest.raises(
            WorkdirError, match="was deleted, moved or replaced while this command used it; put it back"
        ):
            use(folder)
    assert not again or not os.listdir(folder)
