"""Who has a lab: one living process, and nobody once it is dead."""

import os
import subprocess
import sys

import pytest

from veery.errors import Refused
from veery.lab.lock import FOLDER, LabLock, Record, known, read

HOLD = """
import sys, time
from veery.lab.lock import LabLock, Record
held = LabLock(sys.argv[1])
held.write(Record("/nowhere", 2, 0, False))
print("held", flush=True)
time.sleep(600)
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="/run is root's")


def test_a_living_holder_keeps_others_out_and_a_dead_one_does_not() -> None:
    lab = f"u{os.getpid()}"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, lab], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=f"lab {lab} is in use"):
            LabLock(lab)
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    assert read(lab) == Record("/nowhere", 2, 0, False)
    assert lab in known()
    LabLock(lab).forget()
    assert read(lab) is None
    assert not (FOLDER / lab).exists()


def test_a_released_claim_keeps_its_record() -> None:
    lab = f"v{os.getpid()}"
    held = LabLock(lab)
    held.write(Record("/nowhere", 3, 1, True))
    held.release()
    again = LabLock(lab)
    try:
        assert read(lab) == Record("/nowhere", 3, 1, True)
    finally:
        again.forget()
