"""The table of all routes of the API. veeryd serves exactly these; openapi.py and pages.py describe them."""

from __future__ import annotations

from veery.api.route import Route
from veery.api.table import about, domains, ha, nodes, recovery, volumes

ROOMS: dict[str, tuple[Route, ...]] = {
    "Domains": domains.DOMAINS,
    "Moves": domains.MOVES,
    "Volumes": volumes.VOLUMES,
    "Moves of volumes": volumes.VOLUME_MOVES,
    "Targets and networks": volumes.NETWORKS,
    "The cluster": ha.HA,
    "Nodes": nodes.CLUSTER,
    "Health": nodes.HEALTH,
    "Addresses and roles": nodes.ADDRESSES,
    "Fences": recovery.FENCES,
    "Recovery and votes": recovery.RECOVERY,
    "Adoption": recovery.ADOPTION,
    "Certificates": nodes.CERTIFICATES,
    "Credentials": nodes.CREDENTIALS,
    "Upkeep": nodes.UPKEEP,
    "Alarms": nodes.ALARMS,
    "The API": about.ABOUT,
}
"""The routes, by the headings of docs/api.md."""

ROUTES: tuple[Route, ...] = tuple(route for room in ROOMS.values() for route in room)
