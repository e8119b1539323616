"""What the worker processes of tests/test_workers.py run: they find it by import, so it lies in a module."""

import os
import signal
import sys
import time

from parity.errors import WeightsError


def count(start, stop):
    yield from range(start, stop)


def heavy(payload, number):
    yield number, len(payload)


def fail():
    yield "begun"
    raise WeightsError("the shard is cut off", ["missing: a", "extra: b"])


def stumble():
    yield "begun"
    {}["no such key"]


def unspeakable():
    yield lambda: None


def leave():
    yield "begun"
    sys.exit(0)


def die():
    yield "begun"
    time.sleep(0.5)  # what was told is on its way
    os.kill(os.getpid(), signal.SIGKILL)


def linger(seconds):
    yield os.getpid()
    time.sleep(seconds)


def chatter(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.2)
        yield "still here"


def environment(*names):
    yield os.getpid(), {name: os.environ.get(name) for name in names}


def vanish():
    yield "begun"
    time.sleep(0.5)
    os._exit(0)
