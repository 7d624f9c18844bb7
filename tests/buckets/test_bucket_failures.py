"""Services and networks that fail: what may pass is told from what the user has to mend, and no
claim and no event is lost silently. The errors are those that gcsfs and s3fs raise.
"""

import logging
import pathlib
import pickle
import tempfile
import time
import types

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from gcsfs.retry import HttpError, validate_response
from s3fs.errors import translate_boto_error

from optiml_jax import bucket_claim, buckets
from optiml_jax.bucket_claim import BucketClaim
from optiml_jax.buckets import BucketPath
from optiml_jax.errors import UserError, may_pass
from optiml_jax.train import metrics
from optiml_jax.train.reporting import Reporter

UNREACHABLE = EndpointConnectionError(endpoint_url="http://localhost:9")


def of_gcsfs(status):
    with pytest.raises(Exception) as raised:
        validate_response(status, b'{"error": {"message": "no"}}', "some/path")
    return raised.value


def of_s3fs(status, code):
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "PutObject"))


def raising(error):
    def fails(*arguments, **named):
        raise error

    return fails


def service_that_fails(monkeypatch, error):
    fails = raising(error)
    service = types.SimpleNamespace(put_file=fails, pipe_file=fails, info=fails)
    monkeypatch.setattr(BucketPath, "files", service)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (of_gcsfs(503), True),
        (of_gcsfs(502), True),
        (of_gcsfs(429), True),
        (of_s3fs(503, "SlowDown"), True),
        (of_s3fs(502, "502"), True),
        (UNREACHABLE, True),
        (HttpError(), True),
        (of_gcsfs(401), False),
        (of_gcsfs(403), False),
        (of_gcsfs(404), False),
        (of_s3fs(401, "Unauthorized"), False),
        (of_s3fs(403, "AccessDenied"), False),
        (of_s3fs(404, "NoSuchBucket"), False),
        (NoCredentialsError(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_refusal_is_told_from_a_failure_that_may_pass(
    objects, tmp_path, monkeypatch, error, passing
):
    service_that_fails(monkeypatch, error)
    place = BucketPath("s3://shaky/run/file")
    (tmp_path / "x").touch()
    monkeypatch.setattr(buckets, "_reached", set())
    actions = [
        lambda: place.upload(tmp_path / "x"),
        lambda: BucketClaim(place, lease=60.0).acquire(),
    ]
    if not isinstance(error, FileNotFoundError):  # a file may yet be made there
        actions.append(lambda: buckets.reach(place))
    for action in actions:
        with pytest.raises(UserError, match=r"\); (look at .*)?the same command continues") as e:
            action()
        assert may_pass(e.value) == passing
        assert may_pass(pickle.loads(pickle.dumps(e.value))) == passing  # from a worker process
        assert ("your credentials" in str(e.value)) != passing


@pytest.fixture
def held(objects, monkeypatch):
    """A claim that is held, and the reasons for which it was lost."""
    lost = []
    monkeypatch.setattr(bucket_claim, "stop_writing", lambda *why: lost.append(why))
    claim = BucketClaim(BucketPath("s3://box/run/.train.lock"), lease=0.4)
    assert claim.acquire() is None
    yield claim, lost
    claim.release()


@pytest.mark.parametrize("error", [of_gcsfs(503), UNREACHABLE], ids=["gs", "s3"])
def test_a_claim_that_cannot_be_renewed_for_its_lease_stops_its_owner(held, monkeypatch, error):
    claim, lost = held
    monkeypatch.setattr(BucketPath, "read_bytes", raising(error))
    claim._thread.join(30)
    assert lost == [(str(claim._file), str(error))]


def test_a_claim_is_renewed_after_a_failure_within_its_lease(held, objects, monkeypatch):
    _, lost = held
    stopped = types.SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep)
    monkeypatch.setattr(bucket_claim, "time", stopped)  # however slow this machine is
    failed = []

    def fails(path):
        failed.append(path)
        raise of_gcsfs(503)

    with monkeypatch.context() as outage:
        outage.setattr(BucketPath, "read_bytes", fails)
        wait_until(lambda: len(failed) > 1)
    key = ("box", "run/.train.lock")
    before = objects.content[key]
    wait_until(lambda: objects.content[key] != before)
    assert b"beat=" in objects.content[key][0]
    assert not lost


def wait_until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_claim_that_cannot_be_removed_is_a_warning(objects, monkeypatch, caplog):
    claim = BucketClaim(BucketPath("s3://box/run/.train.lock"), lease=60.0)
    assert claim.acquire() is None
    monkeypatch.setattr(BucketPath, "read_bytes", raising(UNREACHABLE))
    claim.release()
    assert "s3://box/run/.train.lock could not be removed" in caplog.text
    assert objects.keys("box") == ["run/.train.lock"]


def events(objects):
    (name,) = objects.keys("box", "run/tensorboard/")
    return objects.content["box", name][0]


def test_a_failed_upload_of_events_is_a_warning_and_is_made_up_for(objects, monkeypatch, caplog):
    writer = metrics.SummaryWriter("s3://box/run/tensorboard", 1)
    tries = []

    def fails(*arguments):
        tries.append(arguments)
        raise UNREACHABLE

    writer._sent = -1e9
    with monkeypatch.context() as outage:
        outage.setattr(BucketPath, "files", types.SimpleNamespace(put_file=fails))
        for step in (1, 2):
            writer.scalars(step, {"meanwhile": 0.5})
            writer.flush()
    assert len(tries) == 1  # the next is a minute later: it takes long until one fails
    assert caplog.text.count("TensorBoard events are uploaded later: cannot write s3://box") == 1
    assert b"meanwhile" not in events(objects)
    writer._sent = -1e9
    writer.flush()
    assert events(objects).count(b"meanwhile") == 2
    writer.close()


def test_events_that_cannot_be_uploaded_at_the_end_are_kept(objects, tmp_path, monkeypatch, caplog):
    writer = metrics.SummaryWriter("s3://box/run/tensorboard", 1)
    writer.scalars(1, {"meanwhile": 0.5})
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    service_that_fails(monkeypatch, UNREACHABLE)
    # How training ended is what is told, in training; elsewhere the failure is the error.
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match="the loss is not finite"),
        Reporter(writer, 0, 9, 1, 1.0, None, None, None).open(),
    ):
        raise UserError("the loss is not finite")
    (kept,) = pathlib.Path(tmp_path, "kept").iterdir()
    assert b"meanwhile" in kept.read_bytes()
    assert f"TensorBoard events are only in {kept}: cannot write s3://box/run" in caplog.text


def test_events_of_an_evaluation_that_cannot_be_uploaded_are_an_error(
    objects, tmp_path, monkeypatch
):
    writer = metrics.SummaryWriter("s3://box/run/tensorboard/evaluation", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    service_that_fails(monkeypatch, UNREACHABLE)
    with pytest.raises(UserError, match=f"only in {tmp_path}/events.*; the same") as raised:
        writer.close()
    assert may_pass(raised.value)
