"""The routes of the brain: policies, groups, drains and events."""

from __future__ import annotations

from veery.api import answers, bodies
from veery.api.route import Form, Privilege, Query, Route
from veery.ha.groups import GroupStatus
from veery.model.domain import DomainReading
from veery.model.ha import Event, Group, HaRecord, NodeReading, Ticket
from veery.node.ha_service import ClusterStatus, Drain, HaStatus

LOOK, DOMAINS = Privilege.LOOK, Privilege.OPERATE_DOMAINS
OPERATE, PEER = Privilege.OPERATE_NODES, Privilege.PEER
NODE = "/v1/nodes/{name}"

HA = (
    Route("GET", "/v1/reading", "reading", PEER, "Return the reading of this node.", answer=NodeReading),
    Route("POST", "/v1/tickets", "start", PEER, "Start a domain by ticket.", body=Ticket, answer=DomainReading),
    Route("POST", "/v1/domains/{ref}/end", "end", PEER, "Stop one instance of a domain.", body=bodies.End),
    Route("GET", "/v1/ha", "list", LOOK, "List the policies of the domains.", answer=tuple[HaStatus, ...]),
    Route("GET", "/v1/ha/{domain}", "show", LOOK, "Show the policy of one domain.", answer=HaStatus),
    Route(
        "POST", "/v1/ha/{domain}", "set", DOMAINS, "Set the policy of a domain.", body=bodies.SetPolicy, answer=HaRecord
    ),
    Route("GET", "/v1/groups", "groups", LOOK, "List the groups.", answer=tuple[GroupStatus, ...]),
    Route(
        "POST",
        "/v1/groups/{group}",
        "set_group",
        DOMAINS,
        "Set the rule of a group.",
        body=bodies.SetGroup,
        answer=Group,
    ),
    Route(
        "DELETE",
        "/v1/groups/{group}",
        "delete_group",
        DOMAINS,
        "Delete the rule of a group.",
        refused="domains are in the group",
    ),
    Route(
        "GET",
        "/v1/cluster",
        "status",
        LOOK,
        "Show the state of the cluster.",
        answer=ClusterStatus,
        led=True,
        note="It answers within seconds, also without a quorum.",
    ),
    Route(
        "GET",
        "/v1/why/{name}",
        "why",
        LOOK,
        "Return the brain's reasons about a node or a domain.",
        answer=answers.Reasons,
        led=True,
    ),
    Route(
        "GET",
        f"{NODE}/drain",
        "progress",
        LOOK,
        "Show the progress of a drain or resume.",
        answer=answers.DrainProgress,
        led=True,
    ),
    Route(
        "POST",
        f"{NODE}/drain",
        "drain",
        OPERATE,
        "Drain a node, or plan it.",
        body=bodies.DrainNode,
        answer=Drain,
        led=True,
        refused="the plan has blockers, or risks without `force`",
    ),
    Route("POST", f"{NODE}/resume", "resume", OPERATE, "Resume a drained node.", body=bodies.ResumeNode, led=True),
    Route(
        "POST", "/v1/disarm", "disarm", OPERATE, "Disarm the brain: it does nothing from now on.", body=bodies.Disarm
    ),
    Route("POST", "/v1/arm", "arm", OPERATE, "Arm the brain: it decides again."),
    Route(
        "GET",
        "/v1/events",
        "events",
        LOOK,
        "Return the last events.",
        answer=tuple[Event, ...],
        query=(Query(name="count", meaning="how many; 50 without it"),),
    ),
    Route(
        "POST",
        "/v1/events/follow",
        "follow",
        LOOK,
        "Stream each new event.",
        form=Form.LINES,
        answer=Event,
        line='lines are `{"event": "event", "value": Event}`, and `{"event": "alive"}` after every 10 s without an '
        "event; it does not end",
    ),
)
