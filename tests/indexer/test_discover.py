import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.discover import FoundFile, NoAudioFound, discover, hash_file
from indexer.plan import Known, is_gone, plan


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(*paths: Path) -> list[str]:
    return [file.name for file in discover(paths).files]


def known(file: FoundFile, **changes: object) -> Known:
    values = {
        "id": 1, "name": file.name, "path": file.path, "bytes": file.bytes, "mtime_ns": file.mtime_ns,
        "sha256": hash_file(file.path), "current": True,
    }  # fmt: skip
    return Known(**(values | changes))  # type: ignore[arg-type]


def test_a_folder_is_walked_and_only_audio_is_taken(tmp_path: Path) -> None:
    for name in ("b.wav", "a/x.OPUS", "a/.hidden.wav", ".git/y.wav", "notes.txt", "a/b/c.mp3", "README"):
        touch(tmp_path / name)
    assert names(tmp_path) == ["a/b/c.mp3", "a/x.OPUS", "b.wav"]


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    assert names(touch(tmp_path / "deep" / "notes.txt")) == ["notes.txt"]


def test_paths_are_absolute_and_a_file_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = touch(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    found = discover([Path(), file, "./a.wav", "../" + tmp_path.name])
    assert [f.path for f in found.files] == [file]
    assert found.failed == []


@pytest.mark.parametrize(
    "name", ["a b.wav", 'it\'s "q".wav', "new\nline.wav", "naïve 😀.wav", "-x.wav", "%20.wav", "a:b.wav"]
)
def test_odd_names_are_kept(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name)
    assert names(tmp_path) == [name]


def test_bytes_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(raw, "wb") as file:
        file.write(b"x")
    (found,) = discover([tmp_path]).files
    assert found.name == "caf\\xe9.wav"
    assert os.fsencode(found.path) == raw


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.wav")
    touch(tmp_path / "out" / "b.wav")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "across").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["a.wav", "across/b.wav"]


def test_what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav")
    (tmp_path / "broken.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    found = discover([tmp_path])
    assert [f.name for f in found.files] == ["a.wav"]
    assert [(f.name, f.code) for f in found.failed] == [
        ("broken.wav", "audio_unreadable"),
        ("pipe.wav", "audio_unreadable"),
    ]


def test_a_name_too_long_for_the_database_is_reported(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(10):
        deep = deep / ("d" * 220)
        deep.mkdir()
    touch(deep / "a.wav")
    assert [f.code for f in discover([tmp_path]).failed] == ["name_too_long"]


def test_nothing_to_index(tmp_path: Path) -> None:
    touch(tmp_path / "notes.txt")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoAudioFound) as caught:
            discover([path])
        assert caught.value.code == "no_audio_found"
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_same_name_in_two_folders_is_a_conflict(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "a.wav")
    touch(tmp_path / "two" / "a.wav")
    found = discover([tmp_path / "one", tmp_path / "two"])
    assert [f.path for f in found.files] == [tmp_path / "one" / "a.wav"]
    assert [(f.name, f.code) for f in found.failed] == [("a.wav", "name_conflict")]


def test_plan_new_unchanged_and_changed(tmp_path: Path) -> None:
    (file,) = discover([touch(tmp_path / "a.wav", b"sound")]).files
    assert plan([file], {}).index == [file]
    assert plan([file], {"a.wav": known(file)}).unchanged == 1
    assert plan([file], {"a.wav": known(file, bytes=99)}).index == [file]
    assert plan([file], {"a.wav": known(file, current=False)}).index == [file]
    assert plan([file], {"a.wav": known(file, mtime_ns=1, sha256="00" * 32)}).index == [file]
    touched = plan([file], {"a.wav": known(file, mtime_ns=1)})
    assert (touched.unchanged, touched.index, len(touched.touched)) == (1, [], 1)


def test_plan_moved_and_in_conflict(tmp_path: Path) -> None:
    old = touch(tmp_path / "old" / "a.wav", b"sound")
    new = Path(shutil.copy(old, touch(tmp_path / "new" / "a.wav")))
    (old_file,), (file,) = discover([old]).files, discover([new]).files
    before = known(old_file)
    conflict = plan([file], {"a.wav": before})
    assert [f.code for f in conflict.failed] == ["name_conflict"]
    assert not conflict.index
    old.unlink()
    assert plan([file], {"a.wav": before}).moved == [(before, file)]
    new.write_bytes(b"other")
    (file,) = discover([new]).files
    assert plan([file], {"a.wav": before}).index == [file]


def test_plan_finds_what_was_renamed(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"two", "d": b"six"}
    files = {name: discover([touch(tmp_path / f"{name}.wav", content)]).files[0] for name, content in contents.items()}
    before = {file.name: known(file, id=n) for n, file in enumerate(files.values())}
    for old, new in (("a", "x"), ("b", "y"), ("d", "z")):
        (tmp_path / f"{old}.wav").rename(tmp_path / f"{new}.wav")
    (tmp_path / "z.wav").write_bytes(b"ten")  # as long, but another
    touch(tmp_path / "copy.wav", b"one")
    touch(tmp_path / "c2.wav", b"two")  # of c, which is still there, or of b: of whichever is gone
    found = discover([tmp_path]).files
    result = plan(found, before)
    assert [(old.name, file.name) for old, file in result.moved] == [("b.wav", "c2.wav"), ("a.wav", "copy.wav")]
    assert [file.name for file in result.index] == ["x.wav", "y.wav", "z.wav"]
    assert result.unchanged == 1
    # Tokens of another codebook are of no use, whatever the name.
    stale = {name: replace(one, current=False) for name, one in before.items()}
    assert plan(found, stale).moved == []
    assert result.removed == []


def test_plan_removes_only_what_was_there_and_is_gone(tmp_path: Path) -> None:
    paths = [touch(tmp_path / folder / f"{folder}{n}.wav", b"sound") for folder in "ab" for n in "123"]
    before = {file.name: known(file) for path in paths for file in discover([path]).files}
    for path in paths[0], paths[3]:
        path.unlink()
    (tmp_path / "a" / "a2.wav").rename(tmp_path / "a" / ".hidden.wav")
    (tmp_path / "a" / ".hidden.wav").write_bytes(b"other")
    found = discover([tmp_path / "a"]).files
    assert plan(found, before).removed == []
    assert [old.name for old in plan(found, before, prune=[tmp_path / "a"]).removed] == ["a1.wav", "a2.wav"]
    assert [old.name for old in plan(found, before, prune=[tmp_path]).removed] == ["a1.wav", "a2.wav", "b1.wav"]
    assert plan(found, before, prune=[tmp_path / "c", tmp_path / "a" / "a"]).removed == []
    # What became a folder, or lies in what is no folder any more, is gone too; what cannot be looked at may be there.
    assert is_gone(tmp_path / "a" / "a3.wav" / "below.wav")
    assert not is_gone(tmp_path / "a" / "a3.wav")
    assert not is_gone(tmp_path / ("x" * 300))


def test_a_file_under_another_spelling_of_its_path_is_no_conflict(tmp_path: Path) -> None:
    real = touch(tmp_path / "real" / "a.wav")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (file,) = discover([tmp_path / "link"]).files
    result = plan([file], {"a.wav": known(file, path=real)})
    assert (result.unchanged, result.failed, result.index) == (1, [], [])
