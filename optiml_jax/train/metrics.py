"""What a run reports about itself: TensorBoard events, throughput, MFU.

The writer uses TensorBoard's own record format and message types and no TensorFlow: the classes
that TensorBoard offers for writing import TensorFlow wherever it is installed.
"""

import logging
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, types_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from optiml_jax.errors import UserError
from optiml_jax.files import disk_errors
from optiml_jax.paths import is_bucket, path_of
from optiml_jax.sharding.hardware import accelerator_of

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPLOADS = 60.0

MFU_FORMULA = (
    "mfu = flops_per_token * tokens_per_second / (devices * peak_flops); "
    "flops_per_token = 6 * N + 12 * num_layers * num_heads * head_dim * sequence_length "
    "(PaLM, appendix B: forward and backward, full attention, no recomputation), "
    "N = parameters without embedding tables used for lookup only; "
    "tokens are all slots of the packed rows"
)


class NotUploadedError(UserError):
    """A closed file could not be put into its bucket; the message names a copy on this machine."""


class SummaryWriter:
    """Writes scalars and texts for TensorBoard into one new event file of a folder.

    The file begins with a restart mark at `first_step`: TensorBoard then drops that step and later
    ones from earlier files of the folder, so a resumed run shows no step twice. In a bucket, where
    nothing can be appended, the file is uploaded again once a minute and at the end; of these only
    the last upload must succeed.

    Args:
      folder: created if missing.
      first_step: the first step this writer will write.
    """

    def __init__(self, folder: str | os.PathLike, first_step: int):
        folder = path_of(folder)
        self._folder, self._local, self._sent = folder, None, 0.0
        with disk_errors(folder, "TensorBoard events"):
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names.
            stamp = max([int(time.time()), *(_stamp(p) + 1 for p in folder.glob("events.out.*"))])
            name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
            if is_bucket(folder):
                self._local = tempfile.TemporaryDirectory()
            self._path = folder / name
            where = pathlib.Path(self._local.name, name) if self._local else self._path
            self._file = RecordWriter(where.open("xb"))
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=start))
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes `values` (tag -> number) at `step`."""
        summary = summary_pb2.Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=float(value))
        self._write(event_pb2.Event(step=step, summary=summary))

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes Markdown that TensorBoard shows in its text tab."""
        value = summary_pb2.Summary.Value(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = types_pb2.DT_STRING
        value.tensor.tensor_shape.dim.add(size=1)
        value.tensor.string_val.append(text.encode())
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))

    def hparams(self, step: int, values: Mapping[str, Any], name: str) -> None:
        """Writes the settings of this run for TensorBoard's HPARAMS tab.

        Its metrics are the last values of all scalars of the folder and of those below it.

        Args:
          values: setting -> value; nested mappings are flattened; values other than numbers,
            strings and booleans are left out.
          name: of the run, the same after it is resumed.
        """
        start = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=time.time())
        for key, value in _flat(values):
            if isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif isinstance(value, str):
                start.hparams[key].string_value = value
            else:
                start.hparams[key].number_value = value
        data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
        value = summary_pb2.Summary.Value(tag=hparams.SESSION_START_INFO_TAG)
        value.metadata.CopyFrom(hparams.create_summary_metadata(data))
        value.tensor.CopyFrom(hparams.NULL_TENSOR)
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))

    def flush(self) -> None:
        """Flushes what has been written, so that TensorBoard can read it.

        A failed upload is a warning: the next one holds all that this one does.
        """
        with disk_errors(self._folder, "TensorBoard events"):
            self._file.flush()
            if self._local and time.monotonic() - self._sent > _SECONDS_BETWEEN_UPLOADS:
                self._upload_or_warn()

    def close(self) -> None:
        """Flushes and closes the file.

        Raises:
          NotUploadedError: it is not in its bucket.
        """
        with disk_errors(self._folder, "TensorBoard events"):
            self._file.close()
            if self._local:
                with self._local:  # removed in any case
                    self._upload_or_keep()

    def _upload_or_warn(self) -> None:
        try:
            self._path.upload(self._local_file())
        except UserError as e:
            logger.warning("TensorBoard events are uploaded later: %s", e)
        self._sent = time.monotonic()  # a failure takes long: not again with the next step

    def _upload_or_keep(self) -> None:
        try:
            self._path.upload(self._local_file())
        except UserError as e:
            kept = shutil.copy(self._local_file(), tempfile.gettempdir())
            raise NotUploadedError(f"TensorBoard events are only in {kept}: {e}") from e

    def _local_file(self) -> pathlib.Path:
        return pathlib.Path(self._local.name, self._path.name)

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        with disk_errors(self._folder, "TensorBoard events"):
            self._file.write(event.SerializeToString())


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{before}{key}", value


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device in `dtype`; None if it is not in the table."""
    if dtype == "float32":
        return None
    found = accelerator_of(device_kind)
    return found and found.flops


def _stamp(path: pathlib.Path) -> int:
    digits = path.name.removeprefix("events.out.tfevents.").split(".")[0]
    return int(digits) if digits.isdigit() else 0
