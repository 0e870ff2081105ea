"""etcd's own figures of this node's member, as the text of its /metrics."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from veery.host.contexts import Source, current

DEADLINE_S = 5.0  # of one step of the connection
TEXT_MAX = 1 << 20


def read(url: str, tls: Source) -> str | None:
    """Return the metrics of the member that serves clients at `url`, None if it does not answer. Blocks: call it in a
    thread."""
    parts = urlsplit(url)
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=DEADLINE_S, context=current(tls))
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        return answer.read(TEXT_MAX).decode(errors="replace") if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
