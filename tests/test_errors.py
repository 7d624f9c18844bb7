"""Exit statuses: what the launch scripts start again, and what they leave to the user."""

import errno
import os

import pytest

from optiml_jax.cli import main as command_line
from optiml_jax.data import cache_task
from optiml_jax.data.example import TaskSource
from optiml_jax.data.prepare import PrepareError, PrepareSummary
from optiml_jax.errors import UserError, may_pass, status_of
from optiml_jax.files import disk_errors


def failing(code: int) -> OSError:
    return OSError(code, os.strerror(code), "/some/file")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (errno.ESTALE, 1),  # a network file system
        (errno.EIO, 1),
        (errno.ENOENT, 2),
        (errno.ENOSPC, 2),
        (errno.EACCES, 2),
    ],
)
def test_a_verb_ends_with_1_only_where_a_retry_can_help(monkeypatch, capsys, code, status):
    def plainly(arguments):
        raise failing(code)

    def as_user_error(arguments):
        with disk_errors("/some/file", "the records"):
            raise failing(code)

    for answer in (plainly, as_user_error):
        monkeypatch.setattr(command_line, "_answer", answer)
        assert command_line.main(["plan"]) == status
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(("code", "passing"), [(errno.ESTALE, True), (errno.ENOENT, False)])
def test_a_preparation_is_tried_again_where_that_can_help(monkeypatch, code, passing):
    def cache(*arguments):
        raise UserError("rows.parquet cannot be read") from failing(code)

    monkeypatch.setattr(cache_task, "_cache_if_changed", cache)
    source = TaskSource("b/t", ("train",), (), lambda split, drops: iter(()), list)
    outcome = cache_task.cache_task(source, None)
    assert outcome.error == "rows.parquet cannot be read"
    assert may_pass(PrepareError(PrepareSummary({"b/t": outcome}))) == passing


def test_one_failure_that_may_pass_is_enough_to_try_again():
    assert may_pass(TimeoutError())
    assert not may_pass(UserError("no such setting"))
    assert [status_of(passing) for passing in ([], [False], [False, True])] == [0, 2, 1]
