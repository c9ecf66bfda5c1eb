"""Files that are whole or absent: a full disk, links, modes, appended lines."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from questtrain.errors import TrainingStopped, UserError, WriteFailed
from questtrain.store import files, patience
from questtrain.store.files import (
    LineFile,
    atomic_write,
    copy_file,
    folder_to_publish,
    no_such_folder,
    output_for,
    publish_folder,
    remove_folder,
    write_json,
    write_text,
    writing,
)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The disk refuses at the last moment: when the data are to reach it."""

    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_what_the_disk_refuses_is_one_error_and_leaves_nothing(tmp_path, monkeypatch, number):
    """The file as it was, no other beside it; the message says the room needed and free."""
    path = tmp_path / "run.json"
    write_text(path, "old")
    refuse(monkeypatch, number)
    monkeypatch.setattr(patience, "PAUSES", ())  # EIO is tried again
    for write in (lambda: write_text(path, "new"), lambda: write_json(path, [1, 2])):
        with pytest.raises(WriteFailed) as failed:
            write()
        said = str(failed.value)
        assert said.startswith(f"{path} cannot be written: {os.strerror(number)} (needs ")
        assert "bytes are free" in said
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert isinstance(failed.value, TrainingStopped)
    assert isinstance(failed.value, OSError)
    assert (failed.value.errno, failed.value.exit_code) == (number, 74)


def test_an_advice_ends_the_message():
    failed = WriteFailed(errno.ENOSPC, "No space left on device", "f", "")
    assert str(failed) == "f cannot be written: No space left on device"
    assert str(failed.advising("Make room.")) == f"{failed}. Make room."


def test_other_errors_of_the_system_pass():
    with pytest.raises(PermissionError), writing(Path("f")):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_file_that_the_user_named_is_bad_input(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.ENOSPC)
    path = tmp_path / "out" / "law.json"
    with (
        pytest.raises(UserError, match="cannot be written: No space left on device"),
        output_for(path),
    ):
        write_text(path, "x")


def test_of_nested_ones_the_outermost_speaks(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.ENOSPC)
    folder = tmp_path / "step_00000001"
    with (
        pytest.raises(WriteFailed, match=r"step_00000001 cannot be .*needs 5,000 bytes"),
        writing(folder, 5000),
    ):
        write_text(tmp_path / "checkpoint.json", "x")


@pytest.mark.parametrize("how", ["written", "copied"])
def test_a_link_is_replaced_and_never_followed(tmp_path, how):
    target, link, source = (tmp_path / name for name in ("target", "link", "source"))
    target.write_text("someone else's")
    source.write_text("new")
    link.symlink_to(target)
    if how == "written":
        write_text(link, "new")
    else:
        copy_file(source, link)
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("new", "someone else's")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077])
def test_the_umask_decides_on_modes(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "x")
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        private = temporary / "weights"
        private.touch(0o600)
        publish_folder(temporary, tmp_path / "final")
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "final" / "weights"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


class Short:
    """A file that takes a few bytes of a line, and then no more."""

    def __init__(self, file, most: int) -> None:
        self.file, self.most = file, most

    def write(self, data: bytes) -> int:
        if not self.most:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, self.most = data[: self.most], 0
        return self.file.write(taken)

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path)
    lines.write("one")
    lines._file = Short(lines._file, most=3)
    with pytest.raises(WriteFailed, match=r"metrics\.jsonl cannot be written"):
        lines.write("second")
    assert path.read_text() == "one\n"
    lines._file = lines._file.file
    lines.write("third")
    lines.close()
    assert path.read_text() == "one\nthird\n"


def test_a_folder_is_never_partly_removed(tmp_path, monkeypatch):
    """Killed in the middle of it, nothing is left under the name."""
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    (folder / "model").write_text("x")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    assert not folder.exists()
    remove_folder(folder)


def half_written(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError


def test_what_raises_inside_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        half_written(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_hidden_folder_goes_once_its_process_is_killed(tmp_path: Path) -> None:
    """One whose process lives stays, whatever number that has; so does what is none of ours."""
    final = tmp_path / "new" / "model[1]"
    probe = (
        "import sys, time; from pathlib import Path;"
        "from questtrain.store.files import folder_to_publish\n"
        "with folder_to_publish(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", probe, str(final)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        other = Path(process.stdout.readline().strip())
        (final.parent / ".model[1].json.tmp").touch()
        (final.parent / ".model[1].foreign.tmp").mkdir()
        kept = sorted(final.parent.iterdir())
        with folder_to_publish(final) as folder:
            assert sorted(folder.iterdir()) == []
            assert (other / "half").exists()
            (folder / "file").touch()
            publish_folder(folder, final)
        assert sorted(final.parent.iterdir()) == sorted([*kept, final])
        process.send_signal(signal.SIGKILL)
    with folder_to_publish(final):
        pass
    assert sorted(final.parent.iterdir()) == sorted({*kept, final} - {other.parent})


def test_a_file_in_a_folders_place_is_said_to_be_one(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "rns.txt").touch()
    said = {
        name: str(no_such_folder(f"run={name}", tmp_path / name)) for name in ("rns.txt", "rns")
    }
    assert said["rns.txt"] == "run=rns.txt: that is a file, where a folder belongs."
    assert said["rns"].startswith("run=rns: there is no such folder. Did you mean ")
