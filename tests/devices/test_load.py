"""What other processes take of the cores while something is measured."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from unet.devices import load
from unet.devices.load import NOTED, Span, Watch, others, words

BURN = "import time\nwhile time.process_time() < {}: pass"


def test_own_time_is_subtracted_of_each_process_of_the_machine() -> None:
    cores = {0: 9.0, 1: 6.0}
    assert others([Span("here", 10.0, 5.0, cores)]) == 1.0
    assert others([Span("here", 10.0, 5.0, cores), Span("here", 10.0, 4.0, cores)]) == 0.6
    assert others([Span("here", 10.0, 5.0, {0: 9.0}), Span("here", 10.0, 5.0, {1: 6.0})]) == 0.5, "each has its core"
    assert others([Span("here", 10.0, 5.0, cores), Span("there", 10.0, 5.0, {0: 10.0})]) == 1.0
    assert others([Span("here", 10.0, 15.2, cores)]) == 0.0, "ticks are coarse"


def test_a_system_that_does_not_count_is_not_known() -> None:
    assert others([Span("here", 10.0, 5.0, {})]) is None
    assert others([Span("here", 10.0, 5.0, {0: 0.0, 1: 0.0})]) is None
    assert words(None, 2) == words(NOTED, 2) == ""
    assert "other processes used 1.5 of the 2 cores meanwhile" in words(1.5, 2)


counted = pytest.mark.skipif(load.seconds_of_cores() == {}, reason="this system does not count the time of its cores")


@counted
def test_a_process_of_ones_own_is_counted_when_it_has_ended() -> None:
    watch = Watch()
    subprocess.run([sys.executable, "-c", BURN.format(0.5)], check=True)
    span = watch.span()
    assert span.own >= 0.5
    assert sum(span.cores.values()) >= 0.8 * span.own, "the kernel counts the same time, in ticks"
    assert (found := others([span])) is not None and found <= len(span.cores) + 0.1


@counted
def test_the_process_of_another_is_found() -> None:
    """One that runs while this one sleeps; that others run too makes it more."""
    other = subprocess.Popen([sys.executable, "-c", BURN.format(60)])
    try:
        time.sleep(0.5)
        watch = Watch()
        time.sleep(1.5)
        found = others([watch.span()])
    finally:
        other.kill()
        other.wait()
    assert found is not None and found > load.NOTED
