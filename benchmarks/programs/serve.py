"""The conversation that every program holds with `common.run`."""

import json
import resource
import sys


def say(**what):
    print(json.dumps(what), flush=True)


def serve(work, parity):
    """Tell `parity`, then do `work()` for each `go`; it returns seconds by phase."""
    say(parity=parity)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        say(**work())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    say(ended=True, peak_rss_gib=round(peak, 3))
