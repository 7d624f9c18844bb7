"""A signal is answered with a line, whatever it interrupts."""

import io
import logging
import os
import signal
import threading

from optiml_jax.train import signals


class Interrupted(io.StringIO):
    """Like a terminal: what comes while it writes in the same thread is an error."""

    writing = False

    def write(self, text: str) -> int:
        if self.writing:
            raise RuntimeError("reentrant call")
        self.writing = True
        if "step 1" in text:
            os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):  # somewhere here Python calls its handler
            pass
        self.writing = False
        return super().write(text)


def test_a_signal_while_a_line_is_written_says_so_after_it(capsys):
    stream = Interrupted()
    handler = logging.StreamHandler(stream)
    signals.logger.addHandler(handler)
    try:
        with signals.StopRequest().listening() as stop:
            signals.logger.warning("step 1")
        for thread in (t for t in threading.enumerate() if t.name == "signal"):
            thread.join()
    finally:
        signals.logger.removeHandler(handler)
    assert stop.reached()
    assert stream.getvalue() == "step 1\nSIGTERM: saving after this step\n"
    assert "Traceback" not in capsys.readouterr().err
