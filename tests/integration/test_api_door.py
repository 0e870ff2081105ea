"""Who is let in at the API: root by the unix socket, the cluster's certificates by TLS, strangers by neither."""

from __future__ import annotations

import json
import sys

import pytest

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
