"""What is installed, and services kept from starting."""

from pathlib import Path

import pytest

from veery.lab.packages import installed, major, restore_policy, services_kept_down


def test_major_versions() -> None:
    assert major("1:10.0.2+ds-2+deb13u1~bpo12+1") == 10
    assert major("1:7.2+dfsg-7+deb12u13") == 7
    assert major("3.4.23-4+b4") == 3
    assert major("") == 0


def test_installed_tells_what_dpkg_knows() -> None:
    found = installed(("dpkg", "no-such-package-as-this"))
    assert set(found) == {"dpkg"}
    assert major(found["dpkg"]) >= 1


def test_a_policy_of_the_machines_own_is_put_back(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)
    with services_kept_down(policy):
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & 0o111
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["policy-rc.d"]


def test_nothing_is_left_where_there_was_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), services_kept_down(tmp_path / "policy-rc.d"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_mended(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("the machine's own\n")
    killed = services_kept_down(policy)
    killed.__enter__()  # and never its __exit__
    assert "101" in policy.read_text()
    restore_policy(policy)
    assert policy.read_text() == "the machine's own\n"
    restore_policy(policy)
    assert policy.read_text() == "the machine's own\n"
