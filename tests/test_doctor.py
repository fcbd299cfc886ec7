"""`kos doctor` and `kos.image`: what a host lacks is named, with the command that mends it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kos import doctor, image
from kos.exceptions import HostError

#: ELF header, one program header and a note section with a foreign note before the build id.
NOTES = (
    b"\x04\0\0\0\x02\0\0\0\x12\0\0\0Xen\0\xaa\xbb\0\0"
    b"\x04\0\0\0\x04\0\0\0\x03\0\0\0GNU\0\xde\xad\xbe\xef"
)


def elf(notes: bytes) -> bytes:
    """A 64-bit ELF file whose only program header is PT_NOTE over `notes`."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = ((2, 2), (62, 2), (1, 4), (0, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2))
    header = ident + b"".join(value.to_bytes(size, "little") for value, size in fields)
    segment = ((4, 4), (4, 4), (120, 8), (0, 8), (0, 8), (len(notes), 8), (0, 8), (4, 8))
    program = b"".join(value.to_bytes(size, "little") for value, size in segment)
    return header.ljust(64, b"\0") + program + notes


def image_in(folder: Path) -> Path:
    """Put a kernel and its ABI file into a folder."""
    kernel = folder / "kos.elf"
    kernel.write_bytes(elf(NOTES))
    (folder / "kos.abi.json").write_text("{}")
    return kernel


def run_doctor(
    *arguments: str, environ: Mapping[str, str], before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the doctor in a process of its own."""
    return subprocess.run(
        [*before, sys.executable, "-m", "kos.doctor", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def found_in(report: str) -> dict[str, dict[str, str | None]]:
    """The checks of a JSON report by name."""
    return {check["name"]: check for check in json.loads(report)["checks"]}


def test_good_host(tmp_path: Path) -> None:
    result = run_doctor("--json", environ={"KOS_KERNEL": str(image_in(tmp_path))})
    assert result.returncode == 0, result.stdout
    assert json.loads(result.stdout)["good"] is True
    found = found_in(result.stdout)
    assert {check["status"] for check in found.values()} == {"ok", "info"}
    assert "build id deadbeef" in str(found["kernel"]["text"])
    assert "/qemu-system-x86_64)" in str(found["qemu"]["text"])


def test_plain_lines(tmp_path: Path) -> None:
    result = run_doctor(environ={"KOS_KERNEL": str(image_in(tmp_path))})
    lines = result.stdout.splitlines()
    assert lines
    assert all(line.startswith(("ok   ", "info ")) for line in lines)


def test_empty_path_names_the_command(tmp_path: Path) -> None:
    environ = {"PATH": "", "KOS_KERNEL": str(image_in(tmp_path))}
    result = run_doctor(environ=environ)
    assert result.returncode == 3
    lines = result.stdout.splitlines()
    at = lines.index("MISS qemu-system-x86_64: not found in PATH")
    assert lines[at + 1].startswith("     mend: ")
    assert lines[at + 1].endswith("apt-get install -y --no-install-recommends qemu-system-x86")
    assert any(line.startswith("MISS setpriv") for line in lines)

    result = run_doctor("--json", environ=environ)
    assert result.returncode == 3
    assert json.loads(result.stdout)["good"] is False
    found = found_in(result.stdout)
    assert found["qemu"]["status"] == "MISS"
    assert str(found["setpriv"]["mend"]).endswith("util-linux")


@pytest.mark.parametrize(
    ("script", "name", "text"),
    [
        ("echo QEMU emulator version 6.2.0; echo microvm x", "qemu", "needs 7.2 or newer"),
        ("echo QEMU emulator version 10.0.2; echo pc x", "microvm", "does not offer it"),
        ("echo no such library >&2; exit 127", "qemu", "no such library"),
    ],
)
def test_unfit_qemu(tmp_path: Path, script: str, name: str, text: str) -> None:
    fake = tmp_path / "qemu-system-x86_64"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    kernel = str(image_in(tmp_path))
    result = run_doctor("--json", environ={"PATH": path, "KOS_KERNEL": kernel})
    assert result.returncode == 3
    check = found_in(result.stdout)[name]
    assert check["status"] == "MISS"
    assert text in str(check["text"])
    assert "qemu-system-x86" in str(check["mend"])


@pytest.mark.parametrize(
    ("limit", "name", "letter"),
    [("--as=2147483648", "address-space", "v"), ("--nofile=64", "open-files", "n")],
)
def test_limits(tmp_path: Path, limit: str, name: str, letter: str) -> None:
    result = run_doctor(
        "--json",
        environ={"KOS_KERNEL": str(image_in(tmp_path))},
        before=["prlimit", f"{limit}:"],
    )
    assert result.returncode == 3, result.stderr
    check = found_in(result.stdout)[name]
    assert check["status"] == "MISS"
    assert f"ulimit -{letter}" in str(check["mend"]) or "prlimit" in str(check["mend"])


def test_file_size_limit(tmp_path: Path) -> None:
    result = run_doctor(
        "--json",
        environ={"KOS_KERNEL": str(image_in(tmp_path))},
        before=["prlimit", "--fsize=1048576:"],
    )
    check = found_in(result.stdout)["memfd"]
    assert check["status"] == "MISS"
    assert "fsize" in str(check["mend"]) or "ulimit -f" in str(check["mend"])


def test_missing_and_broken_kernel(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.elf")
    found = found_in(run_doctor("--json", environ={"KOS_KERNEL": absent}).stdout)
    assert found["kernel"]["status"] == "MISS"
    assert absent in str(found["kernel"]["text"])
    assert found["kernel"]["mend"] == "make build"

    kernel = image_in(tmp_path)
    kernel.write_bytes(b"not ELF")
    found = found_in(run_doctor("--json", environ={"KOS_KERNEL": str(kernel)}).stdout)
    assert found["kernel"]["status"] == "MISS"
    assert "no 64-bit" in str(found["kernel"]["text"])


def test_main_agrees_with_checks(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["good"] else 3)
    assert [check["name"] for check in report["checks"]] == [c.name for c in doctor.checks()]


def test_find_prefers_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = image_in(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("KOS_KERNEL", str(image_in(other)))
    assert image.find() == (other / "kos.elf", other / "kos.abi.json")
    assert image.find(kernel) == (kernel, tmp_path / "kos.abi.json")
    (other / "kos.abi.json").unlink()
    with pytest.raises(HostError, match=r"kos\.elf with kos\.abi\.json") as caught:
        image.find()
    assert caught.value.mend == "make build"


@pytest.mark.parametrize("cut", [16, 60, 100])
def test_build_id_of_a_damaged_file(tmp_path: Path, cut: int) -> None:
    damaged = tmp_path / "kos.elf"
    damaged.write_bytes(elf(NOTES)[:cut])
    with pytest.raises(ValueError, match="cut short"):
        image.build_id(damaged)


def test_build_id(tmp_path: Path) -> None:
    assert image.build_id(image_in(tmp_path)) == "deadbeef"
    bare = tmp_path / "bare.elf"
    bare.write_bytes(elf(NOTES[:20]))
    with pytest.raises(ValueError, match="no build id"):
        image.build_id(bare)
