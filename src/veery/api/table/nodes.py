"""The routes of nodes: their state, their membership, addresses, certificates and credentials."""

from __future__ import annotations

from veery.api import answers, bodies
from veery.api.route import Privilege, Query, Route
from veery.cluster.authorities import CaStatus
from veery.cluster.join import CaReply, JoinReply, JoinRequest
from veery.cluster.losses import Losses
from veery.cluster.renewal import RenewReply, RenewRequest
from veery.cluster.upkeep import Defragmented
from veery.model.alarm import AlarmWay
from veery.model.cluster import TokenStatus
from veery.model.health import Finding, Health
from veery.model.verdict import HealthMove, HealthRecord, NodeHealth
from veery.node.addressplan import AddressPlan
from veery.node.storagerole import StorageNodes

OPEN, LOOK, OPERATE = Privilege.OPEN, Privilege.LOOK, Privilege.OPERATE_NODES
ADMINISTER, PEER = Privilege.ADMINISTER, Privilege.PEER
ONE = "/v1/nodes/{name}"
DIRECT = "The caller's own certificate decides. The route is never forwarded."
CA_REFUSED = "nodes prevent the step"

CLUSTER = (
    Route("GET", "/v1/host", "host", LOOK, "Show this node and its machine.", answer=answers.HostShown),
    Route("GET", "/v1/log", "log", LOOK, "Return the hypervisor's log, then veeryd's.", answer=answers.Text),
    Route("GET", "/v1/cpu", "cpu", LOOK, "Show the CPU models that new domains get.", answer=answers.Processors),
    Route("GET", "/v1/health", "health", LOOK, "Return the findings of this node about itself.", answer=Health),
    Route(
        "GET",
        "/v1/doctor",
        "doctor",
        LOOK,
        "Return the findings on all nodes and between them.",
        answer=list[Finding],
        query=(Query(name="node", meaning="the findings on this node only"),),
    ),
    Route("GET", "/v1/nodes", "nodes", LOOK, "List the nodes.", answer=list[answers.NodeRow]),
    Route(
        "DELETE",
        ONE,
        "leave",
        ADMINISTER,
        "Remove a node.",
        refused="it has domains or volumes",
        query=(
            Query(name="forget", value="1", meaning="the node is gone for good", answer=Losses),
            Query(name="volumes", value="1", meaning="with `forget`, delete the records of its volumes"),
            Query(name="everything", value="1", meaning="with `forget`, also if it held disk files of domains"),
        ),
    ),
    Route(
        "POST",
        "/v1/tokens",
        "token",
        ADMINISTER,
        "Create a token for one new node.",
        answer=answers.NewToken,
        note="It is valid once, for one hour, and while the caller's node is in the cluster.",
    ),
    Route("GET", "/v1/tokens", "tokens", ADMINISTER, "List the unused tokens.", answer=tuple[TokenStatus, ...]),
    Route("DELETE", "/v1/tokens/{id}", "revoke_token", ADMINISTER, "Revoke a token."),
    Route("GET", "/v1/ca", "ca", OPEN, "Return the certificate of the cluster's CA.", answer=CaReply),
    Route("POST", "/v1/join", "join", OPEN, "Admit a new node that has a token.", body=JoinRequest, answer=JoinReply),
)

CERTIFICATES = (
    Route(
        "POST",
        f"{ONE}/renew",
        "renew",
        ADMINISTER,
        "Renew the certificate of a node.",
        answer=answers.Renewed,
        refused="the cluster still accepts the former certificate",
    ),
    Route("GET", "/v1/ca/status", "status", LOOK, "Show the progress of a change of CA.", answer=CaStatus),
    Route(
        "POST",
        "/v1/ca/renew",
        "new_ca",
        ADMINISTER,
        "Take the next step to a new CA.",
        answer=CaStatus,
        refused=CA_REFUSED,
    ),
    Route("POST", "/v1/ca/cancel", "cancel", ADMINISTER, "Go back to the old CA.", answer=CaStatus, refused=CA_REFUSED),
    Route("POST", "/v1/ca/drop", "drop", ADMINISTER, "Trust the new CA alone.", answer=CaStatus, refused=CA_REFUSED),
    Route(
        "POST",
        "/v1/certificates",
        "sign",
        PEER,
        "Sign the next certificate of the calling node.",
        body=RenewRequest,
        answer=RenewReply,
        note=f"{DIRECT} Voters answer.",
    ),
    Route(
        "POST",
        "/v1/sealing",
        "sealing",
        PEER,
        "Return the key that seals the CA's key to a voter.",
        answer=answers.Key,
        note=DIRECT,
    ),
)

CREDENTIALS = (
    Route(
        "POST",
        "/v1/initiators",
        "accept",
        PEER,
        "Seal the CHAP password of the calling node in the store.",
        body=bodies.Password,
        note=f"{DIRECT} Voters and storage nodes answer.",
    ),
    Route(
        "POST",
        "/v1/initiators/sealing",
        "sealing",
        PEER,
        "Return the key that opens the passwords to a voter or storage node.",
        answer=answers.Key,
        note=DIRECT,
    ),
)

UPKEEP = (
    Route(
        "POST",
        "/v1/store/defragment",
        "defragment",
        OPERATE,
        "Defragment the file of every voter, one after the other.",
        answer=list[Defragmented],
        refused="a voter does not answer",
    ),
    Route(
        "POST",
        "/v1/etcd/restart",
        "restart",
        OPERATE,
        "Restart the etcd of this node.",
        body=bodies.Force,
        note="It answers once the etcd knows a leader again.",
    ),
)

ALARMS = (
    Route(
        "GET",
        "/v1/alarms",
        "list",
        LOOK,
        "Show each way in which this node sends alarms, and its last result.",
        answer=tuple[AlarmWay, ...],
    ),
    Route(
        "POST",
        "/v1/alarms/test",
        "test",
        OPERATE,
        "Send a test message by each way.",
        answer=tuple[AlarmWay, ...],
        refused="this node sends no alarms",
    ),
)

HEALTH = (
    Route(
        "GET",
        "/v1/verdicts",
        "verdicts",
        LOOK,
        "Return the health record of each node from the store.",
        answer=dict[str, HealthRecord],
    ),
    Route(
        "GET",
        "/v1/verdicts/moves",
        "moves",
        LOOK,
        "List the last 200 moves that verdicts caused, the oldest first, each with its forecast and its end.",
        answer=tuple[HealthMove, ...],
    ),
    Route("GET", f"{ONE}/health", "show", LOOK, "Show the present health of one node.", answer=NodeHealth),
    Route(
        "POST",
        f"{ONE}/well",
        "well",
        OPERATE,
        "Declare a node, or the reading of one sensor, well.",
        body=bodies.Well,
        answer=HealthRecord,
    ),
)

ADDRESSES = (
    Route(
        "POST",
        f"{ONE}/readdress",
        "readdress",
        ADMINISTER,
        "Change the address of a node, or plan the change.",
        body=bodies.Readdress,
        answer=AddressPlan,
    ),
    Route(
        "POST",
        f"{ONE}/storage",
        "storage",
        ADMINISTER,
        "Give a node the storage role, or take it away.",
        body=bodies.Switch,
        answer=StorageNodes,
    ),
    Route(
        "POST",
        "/v1/reach",
        "reach",
        PEER,
        "Return the ports of an address that this node cannot reach.",
        body=bodies.Reach,
        answer=answers.Missing,
    ),
)
