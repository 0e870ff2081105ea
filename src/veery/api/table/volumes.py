"""The routes of volumes, targets and networks."""

from __future__ import annotations

from veery.api import answers, bodies
from veery.api.route import Form, Privilege, Query, Route
from veery.model.volume import Volume, VolumeMove, VolumeMoved
from veery.storage.tgtoutput import Target

LOOK, OPERATE, PEER = Privilege.LOOK, Privilege.OPERATE_DOMAINS, Privilege.PEER
ONE = "/v1/volumes/{name}"
COPY_LINES = "progress lines have `step`, and the bytes `done` and `total`"

VOLUMES = (
    Route("GET", "/v1/volumes", "list", LOOK, "List the volumes.", answer=tuple[answers.VolumeShown, ...]),
    Route(
        "POST",
        "/v1/volumes",
        "create",
        OPERATE,
        "Create a volume on a storage node.",
        body=bodies.CreateVolume,
        answer=Volume,
    ),
    Route("GET", ONE, "show", LOOK, "Show one volume.", answer=answers.VolumeShown),
    Route("DELETE", ONE, "delete", OPERATE, "Delete a volume and its data.", refused="a domain uses it"),
    Route("POST", f"{ONE}/resize", "resize", OPERATE, "Grow a volume.", body=bodies.Resize, answer=Volume),
    Route(
        "POST",
        f"{ONE}/resized",
        "resized",
        PEER,
        "The storage node passes a new size to the domains here.",
        body=bodies.Resize,
        answer=answers.Told,
    ),
    Route(
        "PUT",
        f"{ONE}/content",
        "content",
        OPERATE,
        "Fill a volume with the bytes of the request.",
        takes=Form.BYTES,
        answer=Volume,
        note="The request needs a Content-Length.",
    ),
    Route(
        "POST",
        f"{ONE}/image",
        "image",
        OPERATE,
        "Build an image into a volume.",
        body=bodies.BuildImage,
        answer=Volume,
        form=Form.LINES,
        line="progress lines have `step` and `fraction`, from 0 to 1",
        note="The work continues when the caller disconnects.",
    ),
)

VOLUME_MOVES = (
    Route(
        "POST",
        f"{ONE}/move",
        "move",
        OPERATE,
        "Move a volume to another storage node.",
        body=bodies.MoveVolume,
        answer=VolumeMoved,
        form=Form.LINES,
        line=COPY_LINES,
        note="The move continues when the caller disconnects.",
    ),
    Route(
        "POST",
        f"{ONE}/move/cancel",
        "cancel",
        OPERATE,
        "Cancel the move of a volume.",
        refused="the move is past COMMIT",
    ),
    Route(
        "POST",
        f"{ONE}/place",
        "place",
        PEER,
        "Return the record that the volume would have on this node.",
        body=Volume,
        answer=Volume,
    ),
    Route(
        "POST",
        f"{ONE}/take-in",
        "take_in",
        PEER,
        "Create the backing and the target of the volume on this node.",
        body=VolumeMove,
    ),
    Route(
        "POST",
        f"{ONE}/fetch",
        "fetch",
        PEER,
        "Copy a volume that no domain uses from its node.",
        body=VolumeMove,
        answer=answers.Copied,
        form=Form.LINES,
        line=COPY_LINES,
    ),
    Route(
        "POST",
        f"{ONE}/mirror",
        "mirror",
        PEER,
        "Copy a volume under the domain here, and switch the domain to the copy.",
        body=VolumeMove,
        answer=answers.Copied,
        form=Form.LINES,
        line=COPY_LINES,
    ),
    Route(
        "POST",
        f"{ONE}/let-go",
        "let_go",
        PEER,
        "Return whether the domain here no longer takes part in a move.",
        body=bodies.LetGo,
        answer=answers.Released,
    ),
    Route("POST", f"{ONE}/settle", "settle", PEER, "Settle the open moves of this node now."),
    Route(
        "GET",
        f"{ONE}/extents",
        "extents",
        PEER,
        "Return the data extents of a volume: offsets and lengths.",
        answer=tuple[tuple[int, int], ...],
        note="On the volume's node only.",
    ),
    Route(
        "GET",
        f"{ONE}/content",
        "content",
        PEER,
        "Return bytes of a volume.",
        form=Form.BYTES,
        query=(
            Query(name="offset", meaning="the first byte; 0 without it"),
            Query(name="length", meaning="the number of bytes; all without it"),
        ),
        note="On the volume's node only.",
    ),
)

NETWORKS = (
    Route(
        "GET",
        "/v1/targets",
        "targets",
        LOOK,
        "List the targets of tgtd, by storage node.",
        answer=dict[str, tuple[Target, ...]],
        query=(Query(name="here", value="1", meaning="those of this node only"),),
    ),
    Route("GET", "/v1/networks", "networks", LOOK, "List the bridges of this node.", answer=answers.Networks),
)
