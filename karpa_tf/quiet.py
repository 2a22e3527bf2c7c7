"""Keeping what libraries print off the screen."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from karpa_tf.errors import UserError


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Sets standard error itself aside, for what C++ prints; it is shown after all if the block fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except UserError:
            raise  # it says all
        except BaseException:
            sys.stderr.flush()
            log.seek(0)
            os.write(saved, log.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
