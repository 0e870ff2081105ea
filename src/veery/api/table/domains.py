"""The routes of domains and moves."""

from __future__ import annotations

from veery.api import answers, bodies
from veery.api.route import Form, Privilege, Query, Route
from veery.model.domain import Adjustment, VcpuReading
from veery.model.move import MoveReport
from veery.model.plan import Plan, Question, Reply
from veery.model.volume import AttachedVif

LOOK, USE, OPERATE = Privilege.LOOK, Privilege.USE_DOMAINS, Privilege.OPERATE_DOMAINS
NODES, PEER = Privilege.OPERATE_NODES, Privilege.PEER
ONE = "/v1/domains/{ref}"
MOVE_LINES = (
    'the first line is `{"event": "begin", "move": ID}`; progress lines have `move` and `progress`, a MoveProgress'
)

DOMAINS = (
    Route(
        "GET",
        "/v1/domains",
        "list",
        LOOK,
        "List the domains of this node.",
        answer=answers.DomainList,
        query=(
            Query(name="cluster", value="1", meaning="those of every node that answers", answer=answers.ClusterDomains),
        ),
    ),
    Route(
        "POST",
        "/v1/domains",
        "create",
        OPERATE,
        "Start a new domain.",
        body=bodies.Create,
        answer=answers.Created,
        note="The start continues when the caller disconnects.",
    ),
    Route("GET", ONE, "show", LOOK, "Show one domain.", answer=answers.DomainShown),
    Route(
        "DELETE",
        ONE,
        "forget",
        OPERATE,
        "Delete the record of a domain that does not run.",
        note="The domain is given by name.",
    ),
    Route("POST", f"{ONE}/destroy", "order", USE, "Stop a domain at once."),
    Route("POST", f"{ONE}/shutdown", "order", USE, "Ask the guest to shut down."),
    Route("POST", f"{ONE}/reboot", "order", USE, "Ask the guest to restart."),
    Route("POST", f"{ONE}/pause", "order", USE, "Pause a domain."),
    Route("POST", f"{ONE}/unpause", "order", USE, "Continue a paused domain."),
    Route("POST", f"{ONE}/rename", "rename", OPERATE, "Rename a domain.", body=bodies.Rename),
    Route(
        "POST",
        f"{ONE}/memory",
        "memory",
        OPERATE,
        "Set the memory target of the balloon driver.",
        body=bodies.SetMemory,
    ),
    Route(
        "POST",
        f"{ONE}/adjust",
        "adjust",
        OPERATE,
        "Change the limits and shares of a domain.",
        body=Adjustment,
        note="On Xen. `hard` and `soft` with `vcpu` are for this one only. The record stores the change.",
        refused="the order changes nothing",
    ),
    Route("POST", f"{ONE}/save", "save", NODES, "Save a domain to a file of this node.", body=bodies.Save),
    Route(
        "POST",
        "/v1/restore",
        "restore",
        NODES,
        "Restore a domain from a file of this node.",
        body=bodies.Restore,
        answer=answers.Restored,
    ),
    Route("GET", f"{ONE}/vcpus", "vcpus", LOOK, "List the virtual processors.", answer=tuple[VcpuReading, ...]),
    Route("GET", f"{ONE}/disks", "disks", LOOK, "List the disks.", answer=tuple[answers.ShownDisk, ...]),
    Route(
        "POST",
        f"{ONE}/disks",
        "attach_disk",
        OPERATE,
        "Attach a disk.",
        body=bodies.AttachDisk,
        answer=answers.Warnings,
    ),
    Route("DELETE", f"{ONE}/disks/{{vdev}}", "detach_disk", OPERATE, "Detach a disk."),
    Route(
        "POST",
        f"{ONE}/cd",
        "change_cd",
        OPERATE,
        "Change the medium of a CD-ROM drive, or eject it.",
        body=bodies.ChangeCd,
    ),
    Route("POST", f"{ONE}/trigger", "trigger", USE, "Send an NMI, or press the power button.", body=bodies.Trigger),
    Route("POST", f"{ONE}/sysrq", "sysrq", USE, "Send a magic SysRq key to the guest's kernel.", body=bodies.Sysrq),
    Route("POST", f"{ONE}/dump", "dump", NODES, "Dump the memory to a file of this node.", body=bodies.Dump),
    Route("GET", f"{ONE}/vifs", "vifs", LOOK, "List the network interfaces.", answer=tuple[AttachedVif, ...]),
    Route(
        "POST",
        f"{ONE}/vifs",
        "attach_vif",
        OPERATE,
        "Attach a network interface.",
        body=bodies.AttachVif,
        answer=answers.AttachedInterface,
    ),
    Route(
        "DELETE",
        f"{ONE}/vifs/{{which}}",
        "detach_vif",
        OPERATE,
        "Detach a network interface.",
        note="It is given by its MAC address or its index.",
    ),
    Route(
        "GET",
        f"{ONE}/console",
        "console",
        USE,
        "Relay the console.",
        form=Form.SOCKET,
        note="It begins with the output since boot.",
    ),
)

MOVES = (
    Route(
        "POST",
        f"{ONE}/migrate",
        "migrate",
        OPERATE,
        "Move a domain to another node.",
        body=bodies.Migrate,
        answer=MoveReport,
        form=Form.LINES,
        line=f"{MOVE_LINES}; an error has the MoveReport too, as `report`",
        note="The move continues when the caller disconnects.",
    ),
    Route(
        "POST",
        f"{ONE}/plan",
        "plan",
        LOOK,
        "Plan a move: its obstacles and its forecast.",
        body=bodies.PlanMove,
        answer=Plan,
    ),
    Route(
        "POST",
        "/v1/question",
        "question",
        PEER,
        "The source of a planned move asks its target.",
        body=Question,
        answer=Reply,
    ),
    Route("GET", "/v1/moves", "moves", LOOK, "List the moves out of this node.", answer=tuple[MoveReport, ...]),
    Route("GET", "/v1/moves/{move}", "move", LOOK, "Show one move.", answer=MoveReport),
    Route("POST", "/v1/moves/{move}/cancel", "cancel", OPERATE, "Cancel a move.", answer=MoveReport),
    Route(
        "POST",
        "/v1/moves/{move}/set",
        "change",
        OPERATE,
        "Change the limits of a running copy.",
        body=bodies.TuneMove,
        refused="the order changes nothing",
    ),
    Route(
        "POST",
        "/v1/evacuate",
        "evacuate",
        Privilege.OPERATE_NODES,
        "Move several domains, or all.",
        body=bodies.Evacuate,
        answer=answers.Evacuated,
        form=Form.LINES,
        line='the first line is `{"event": "begin", "moves": {NAME: ID}, "refused": {NAME: WHY}}`, then progress as in '
        "one move",
    ),
)
