"""What a process keeps of the memory that it has freed."""

import ctypes
import os
import subprocess
import sys

import pytest

from raysurl.allocator import ONE_ARENA, keep_freed_memory

# pages that the kernel had to hand out for twenty pieces of 64 MiB, each freed before the next
FAULTS = """
import resource, threading
from raysurl.allocator import keep_freed_memory
{call}
def work():
    for n in range(20):
        bytes([n]) * 2**26
if {aside}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(call, aside=False, **more):
    code = [sys.executable, "-c", FAULTS.format(call=call, aside=aside)]
    # what the machine has chosen for itself would hide the difference
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return int(subprocess.run(code, env=own | more, capture_output=True, check=True, text=True).stdout)


needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is not glibc's")


@needs_glibc
def test_freed_memory_is_used_again():
    assert faults("pass") - faults("keep_freed_memory()") > 10 * 2**14


@needs_glibc
def test_in_another_thread_than_the_first_it_needs_the_environment_that_ray_processes_have():
    lost = faults("keep_freed_memory()", aside=True) - faults("keep_freed_memory()", aside=True, **ONE_ARENA)
    assert lost > 10 * 2**14


@pytest.mark.parametrize("fault", [OSError, AttributeError, TypeError])
def test_without_glibc_nothing_happens(monkeypatch, fault):
    def library(name):
        raise fault

    monkeypatch.setattr(ctypes, "CDLL", library)
    keep_freed_memory.__wrapped__()


def test_an_old_glibc_is_asked_for_less_and_never_left_with_one_setting_alone(monkeypatch):
    class Old:
        def __init__(self, most):
            self.most, self.asked = most, []

        def mallopt(self, parameter, size):
            self.asked.append((parameter, size))
            return parameter == -1 or size <= self.most

    for most, taken in (
        (2**30, [(-3, 2**28), (-1, 2**30)]),
        (2**25, [(-3, 2**28), (-3, 2**25), (-1, 2**30)]),
    ):
        library = Old(most)
        monkeypatch.setattr(ctypes, "CDLL", lambda name, library=library: library)
        keep_freed_memory.__wrapped__()
        assert library.asked == taken
    library = Old(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory.__wrapped__()
    assert library.asked == [(-3, 2**28), (-3, 2**25)]
