"""The conversation that every program holds with `common.run`."""

import json
import os
import resource
import sys
from pathlib import Path


def say(**what):
    print(json.dumps(what), flush=True)


def serve(work, parity):
    """Tell `parity`, then do `work()` for each `go`; it returns seconds by phase."""
    say(parity=parity)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        say(**work())
    say(ended=True, peak_rss_gib=peak_rss_gib())


def of_children(field):
    """GiB: a field of `/proc/PID/status`, summed over the processes that this one has begun."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(told["PPid"]) == os.getpid() and field in told:
            total += int(told[field].split()[0])
    return total / (1 << 20)


def peak_rss_gib():
    """Peak memory of this process and of those it begins: what they share counts for each."""
    own, ended = (
        resource.getrusage(who).ru_maxrss / (1 << 20)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(own + max(ended, of_children("VmHWM")), 3)
