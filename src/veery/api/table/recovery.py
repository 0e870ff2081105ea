"""The routes of fences, and of the recovery and adoption of the store."""

from __future__ import annotations

from veery.api import answers, bodies
from veery.api.route import Privilege, Route
from veery.model.adoption import Inventory
from veery.model.fence import Clean, Cut, Fenced
from veery.model.recovery import Aside, Recovered, StoreWord
from veery.node.storage_heartbeats import HeartbeatReport
from veery.node.votes import Vote
from veery.node.witness import WitnessAnswer

LOOK, OPERATE = Privilege.LOOK, Privilege.OPERATE_NODES
ADMINISTER, PEER = Privilege.ADMINISTER, Privilege.PEER
ONE = "/v1/fences/{name}"
NO_STORE = "It works without the store."

FENCES = (
    Route("GET", "/v1/fences", "list", LOOK, "List the fences.", answer=list[Fenced]),
    Route("GET", ONE, "show", LOOK, "Show the fence of one node.", answer=Fenced),
    Route(
        "POST",
        ONE,
        "begin",
        ADMINISTER,
        "Fence a node: keep it from the disks.",
        body=bodies.Signed,
        answer=Fenced,
        note="From the written record on, no target admits the node.",
    ),
    Route(
        "DELETE",
        ONE,
        "lift",
        ADMINISTER,
        "Lift the fence of a node.",
        answer=Clean,
        refused="the node is not clean yet",
    ),
    Route(
        "POST",
        f"{ONE}/confirm",
        "confirm",
        ADMINISTER,
        "Confirm that a node is off.",
        body=bodies.Signed,
        answer=Fenced,
        refused="the node is alive",
    ),
    Route(
        "GET",
        f"{ONE}/test",
        "test",
        OPERATE,
        "Test each fence method of a node; nothing changes.",
        answer=list[answers.MethodTest],
    ),
    Route("POST", f"{ONE}/cut", "cut", PEER, "On a storage node: shut out a node, and prove it.", answer=Cut),
    Route("GET", f"{ONE}/cut", "proof", PEER, "On a storage node: check that a node is shut out.", answer=Cut),
    Route(
        "POST",
        f"{ONE}/admit",
        "admit",
        PEER,
        "On a storage node: admit a node again.",
        body=bodies.AdmitNode,
        refused="the fence is not at this revision, or not `admitting`",
    ),
    Route("GET", "/v1/clean", "clean", PEER, "Return the domains that run here, and the stale copies.", answer=Clean),
    Route(
        "GET",
        "/v1/standing/{initiator}",
        "standing",
        PEER,
        "Return whether this etcd knows a leader, and whether the targets shut out an initiator.",
        answer=WitnessAnswer,
        note=NO_STORE,
    ),
    Route(
        "GET",
        "/v1/guard",
        "guard",
        LOOK,
        "Show the ruling of this hypervisor's guard.",
        answer=answers.GuardShown,
        refused="this node has no guard",
    ),
    Route(
        "GET",
        "/v1/heartbeats",
        "heartbeats",
        LOOK,
        "On a storage node: return the age of each node's last heartbeat.",
        answer=HeartbeatReport,
        note=NO_STORE,
    ),
)

RECOVERY = (
    Route(
        "POST",
        "/v1/vote",
        "vote",
        ADMINISTER,
        "Give this node a vote, or take it away.",
        body=bodies.Switch,
        answer=Vote,
    ),
    Route(
        "POST",
        "/v1/nodes/{name}/vote",
        "vote_of",
        ADMINISTER,
        "Give a node a vote, or take it away.",
        body=bodies.Switch,
        answer=Vote,
    ),
    Route(
        "GET",
        "/v1/recovery",
        "word",
        LOOK,
        "Return what this node knows of the store.",
        answer=StoreWord,
        note=NO_STORE,
    ),
    Route(
        "POST",
        "/v1/recovery",
        "recover",
        ADMINISTER,
        "Recover the store on this node, or plan it.",
        body=bodies.Recover,
        answer=Recovered,
    ),
    Route("POST", "/v1/recovery/still", "still", PEER, "Keep this node still, because the caller recovers the store."),
    Route(
        "POST",
        "/v1/recovery/aside",
        "aside",
        PEER,
        "Give up a replaced store, and use the one on the calling node.",
        body=Aside,
        refused="the caller did not order this node to keep still, the store granted a lease since, or an endpoint has "
        "no address of the caller's certificate",
    ),
)

ADOPTION = (
    Route(
        "GET",
        "/v1/inventory",
        "inventory",
        LOOK,
        "Return the domains that run here, without the store.",
        answer=Inventory,
    ),
    Route(
        "POST",
        "/v1/adopt",
        "adopt",
        ADMINISTER,
        "Adopt a restored store, or plan it.",
        body=bodies.Adopt,
        answer=answers.Adopted,
    ),
)
