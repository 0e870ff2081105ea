"""Who is let in at the API: root by the unix socket, the cluster's certificates by TLS, strangers by neither."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from node_parts import Node, Workshop, until

from veery.errors import Failed
from veery.lab.services import Lab

ASK = """
import http.client, json, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if len(sys.argv) > 3:
    context.load_cert_chain(sys.argv[3] + "/client-cert.pem", sys.argv[3] + "/client-key.pem")
call = http.client.HTTPSConnection("172.16.31.1", 8001, context=context, timeout=20)
call.request(sys.argv[1], sys.argv[2], body=b"{}")
answer = call.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""

HOLD = """
import socket, ssl, sys
folder, places = sys.argv[1], sys.argv[2:]
context = ssl.create_default_context(cafile=folder + "/ca-cert.pem")
context.load_cert_chain(folder + "/client-cert.pem", folder + "/client-key.pem")
held = []
for address in places:
    one = context.wrap_socket(socket.create_connection((address, 2379), timeout=60), server_hostname=address)
    one.sendall(b"GET /version HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert b"200" in one.recv(1000)
    held.append(one)
print("held", flush=True)
for one in held:
    one.settimeout(120)
    try:
        while one.recv(1000):
            pass
    except ConnectionError:
        pass
print("cut")
"""

AS_NOBODY = """
import os, socket, sys
folder = os.open(sys.argv[1], os.O_PATH)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
call = socket.socket(socket.AF_UNIX)
call.settimeout(20)
call.connect(f"/proc/self/fd/{folder}/api.sock")
call.sendall(b"GET /v1/domains HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
said = b""
while piece := call.recv(65536):
    said += piece
print(said.decode())
"""


async def ask(lab: Lab, method: str, path: str, *certificates: object) -> tuple[int, object]:
    """Status and JSON of a request from the machine outside."""
    words = [sys.executable, "-c", ASK, method, path, *(str(each) for each in certificates)]
    status, answer = json.loads((await lab.run("client", words)).out)
    return status, answer


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/domains"), ("POST", "/v1/domains/x/destroy"), ("POST", "/v1/tokens"), ("GET", "/nowhere")],
)
async def test_without_a_certificate_nothing_is_told(lab: Lab, method: str, path: str) -> None:
    status, answer = await ask(lab, method, path)
    assert status == 403
    assert isinstance(answer, dict)
    assert "does not know you" in answer["error"]["message"]
    assert answer["error"]["hint"]


async def test_the_ca_is_told_to_all_and_a_join_needs_a_token(lab: Lab) -> None:
    status, answer = await ask(lab, "GET", "/v1/ca")
    assert status == 200
    assert isinstance(answer, dict)
    assert answer["ca"].startswith("-----BEGIN CERTIFICATE")
    status, answer = await ask(lab, "POST", "/v1/join")
    assert status == 400
    assert "node" not in str(answer).split("error")[0]


async def test_a_node_is_let_in_by_its_certificate(lab: Lab) -> None:
    status, answer = await ask(lab, "GET", "/v1/domains", lab.plan.home("test2") / "lib" / "tls")
    assert status == 200
    assert isinstance(answer, dict)
    assert answer["node"] == "test1"


async def test_another_user_of_the_machine_is_a_stranger(lab: Lab) -> None:
    run = lab.plan.home("test1") / "run"
    said = (await lab.run("test1", [sys.executable, "-c", AS_NOBODY, run])).out
    assert said.startswith("HTTP/1.1 403")
    assert "does not know you" in said


async def test_an_order_for_another_node_is_passed_on(lab: Lab) -> None:
    rows = await lab.json("test1", "--node", "test2", "list", "--json")
    assert rows
    told = await lab.veery("test1", "--node", "nowhere", "list", check=False)
    assert told.code == 1
    assert "no node 'nowhere'" in told.err


async def test_a_node_that_was_put_out_is_a_stranger_and_moves_go_on(
    lab: Lab, near: Node, workshop: Workshop, tmp_path: Path
) -> None:
    settings = tmp_path / "veery.toml"
    settings.write_text(f'state = "{tmp_path}/lib"\nrun = "{tmp_path}/run"\n')
    token = (await near.veery("node", "token")).split()[-1]
    words = [sys.executable, "-m", "veery", "--settings", settings, "join", token, "--name", "test9"]
    await lab.run("client", [*words, "--address", "172.16.31.100", "--roles", "hypervisor"], deadline=120)
    certificates = tmp_path / "lib" / "tls"
    try:
        assert (await ask(lab, "GET", "/v1/domains", certificates))[0] == 200
        status, made = await ask(lab, "POST", "/v1/tokens", certificates)
        assert status == 200
        assert [row["node"] for row in await near.json("token", "list", "--json")] == ["test9"]
        held = lab.enter("client", [sys.executable, "-c", HOLD, certificates, *(one.address for one in lab.plan.nodes)])
        holding = await asyncio.create_subprocess_exec(*map(str, held), stdout=asyncio.subprocess.PIPE)
        assert holding.stdout is not None
        assert await holding.stdout.readline() == b"held\n"
    finally:
        await near.veery("node", "leave", "test9")

    async def let_in(method: str, path: str) -> bool:
        try:
            return (await ask(lab, method, path, certificates))[0] != 403
        except Failed:  # cut in the middle, or refused at the handshake by the CA's list
            return False

    async def a_stranger() -> bool:
        return not await let_in("GET", "/v1/domains")

    await until(a_stranger, "test9 is a stranger")
    async with asyncio.timeout(120):
        assert await holding.stdout.read() == b"cut\n", "each etcd has closed the connection that it had"
        await holding.wait()
    assert not await let_in("POST", "/v1/tokens")
    assert not await let_in("GET", "/v1/domains")
    assert await near.json("token", "list", "--json") == []
    assert isinstance(made, dict)
    settings.write_text(f'state = "{tmp_path}/other"\nrun = "{tmp_path}/run"\n')
    again = [*words[:-3], f"{made['token']}@172.16.31.1", "--name", "test8", "--address", "172.16.31.100"]
    told = await lab.run("client", again, check=False)
    assert told.code == 1
    assert "the token is unknown" in told.err

    # the CA's list is there by now, and QEMU lets the others' moves through
    lists = [lab.plan.home(node) / "lib" / "tls" / "ca-crl.pem" for node in ("test1", "test2")]
    async with asyncio.timeout(60):
        while not all(each.exists() for each in lists):
            await asyncio.sleep(0.1)
    await workshop.volume("door")
    try:
        await near.veery("create", str(workshop.file("door")))
        await near.veery("migrate", "--live", "door", "test2")
        assert any(row["name"] == "door" for row in await lab.json("test2", "list", "--json"))
    finally:
        await workshop.clear("door")
