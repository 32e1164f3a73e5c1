"""SIGKILL of the process that holds a lock file of a sweep's trial, at a moment when there is something to lose."""

import os
import signal
import threading
import time


def kill_holder_once_saved(directory, lock_name):
    """In a thread: kill who holds `lock_name` of the first trial of a sweep directory that has a checkpoint and no
    outcome. Returns the thread and the list of processes killed, filled by it."""
    killed = []

    def watch():
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline and not killed:
            for lock in directory.glob(f"trials/*/{lock_name}"):
                if any(lock.parent.glob("checkpoints/step-*")) and not (lock.parent / "trial.json").exists():
                    killed.extend(_holders(lock))
                    for pid in killed:
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, killed


def _holders(path):
    """Other processes that have the file open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            opened = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue
        if str(path) in opened and int(pid) != os.getpid():
            found.append(int(pid))
    return found
