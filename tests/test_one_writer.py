"""One writer per folder: the second is told, the dead keep nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from optiml_jax.errors import UserError
from optiml_jax.one_writer import one_writer

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
HOLDER = """
import sys, time
from optiml_jax.one_writer import one_writer
with one_writer(sys.argv[1], "optiml train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder; ended after the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_writer_is_told_who_the_first_is(tmp_path, holder):
    with (
        pytest.raises(UserError, match=rf"another `optiml train` .*process {holder.pid} on "),
        one_writer(tmp_path, "optiml train"),
    ):
        pass
    with one_writer(tmp_path, "optiml plan"):  # writes elsewhere in the folder
        pass


def test_a_killed_writer_keeps_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with one_writer(tmp_path, "optiml train"):
        pass
    assert not list(tmp_path.glob(".*lock"))


def test_a_host_that_is_gone_loses_the_folder_after_its_lease(tmp_path, holder, caplog):
    """The claim of another host: same file, other name; its owner no longer refreshes it."""
    (file,) = tmp_path.glob(".*lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    content = file.read_text()
    host = os.uname().nodename
    assert host in content
    file.write_text(content.replace(host, "gone-" + host).replace("60.0", "2.0"))
    began = time.monotonic()
    with one_writer(tmp_path, "optiml train", lease=2.0):
        assert time.monotonic() - began >= 2
    assert "waiting 2 s to see whether it is alive" in caplog.text


def test_a_folder_can_be_held_again(tmp_path):
    for _ in range(2):
        with one_writer(tmp_path / "new" / "folder", "optiml train"):
            pass
    (tmp_path / "file").write_text(json.dumps(1))
    with pytest.raises(UserError, match="is not a folder"), one_writer(tmp_path / "file", "x"):
        pass


def test_a_writer_killed_before_it_wrote_its_name_keeps_nothing(tmp_path):
    (tmp_path / ".train.lock").touch()
    with one_writer(tmp_path, "optiml train"):
        pass
