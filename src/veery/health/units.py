"""Units that systemd reports as failed. Only units that domains need count; others are only mentioned."""

from __future__ import annotations

import re
from collections.abc import Iterator

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

NEEDED = re.compile(
    r"(tgt|iscsid|open-iscsi|multipathd|veery|etcd|libvirtd|virtqemud|xen-init-dom0|xenconsoled)[\w@.-]*"
)
FATAL = re.compile(r"(oxenstored|xenstored)[\w@.-]*")
UNIT = re.compile(
    r"\s{0,6}(?:[●*x×] )?([\w@:.\\-]{1,200}\.(?:service|socket|mount|target))\s+(?:loaded|not-found|masked)\s+(\S+)"
)


class Units:
    """The sensor of failed units."""

    name = "units"

    def read(self, source: Source) -> dict[str, str] | None:
        texts = [
            text
            for program in ("systemctl-failed", "systemctl-list-units")
            for text in source.outputs(program).values()
        ]
        if not texts:
            return None
        found = (UNIT.match(line) for text in texts for line in lines(text))
        return {match[1]: match[2] for match in found if match}

    def judge(self, series: Series[dict[str, str]]) -> Iterator[Sign]:
        failed = [name for name, state in series.last.items() if state == "failed"]
        for name in failed:
            if FATAL.match(name):
                yield sign(self.name, name, Level.BAD, "failed", "the toolstack of Xen cannot work without it")
            elif NEEDED.match(name):
                yield sign(self.name, name, Level.WATCH, "failed", "domains need this unit")
            else:
                yield sign(self.name, name, Level.OK, "failed", "the unit has failed; no domain needs it")
        if not failed:
            yield sign(self.name, "systemd", Level.OK, 0, "no unit has failed")
