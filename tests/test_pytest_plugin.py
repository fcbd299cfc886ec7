"""The pytest plugin, as users' own tests see it: a small test file is written and run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kos.inspect import Dump

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs a test file in a pytest of its own."""

    def go(source: str, *args: str, subprocess: bool = False) -> pytest.RunResult:
        pytester.makepyfile(source)
        if subprocess:
            return pytester.runpytest_subprocess(*args, timeout=120)
        return pytester.runpytest_inprocess("-p", "no:xdist", *args)

    return go


def shown(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines)


# ---- machines ----


def test_each_test_gets_the_machine_as_it_is_after_boot(run: Run) -> None:
    result = run(
        """
        import pytest
        seen = []

        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.kos(memory="32M", leaks="allow")
        def test_blocks(kos, n):
            seen.append((kos.pid, kos.client.buddy_alloc(3), kos.console.text.count("command 7")))
            kos.console.run("log")
            kos.ram[kos.ram_offset(0x1900000)] = 7
            kos.connect("extra").buddy_alloc(0)

        @pytest.mark.kos(memory="32M")
        def test_they_were_the_same(kos):
            assert len(set(seen)) == 1
            assert kos.ram[kos.ram_offset(0x1900000)] == 0
            assert kos.memory == 32 << 20
            assert kos.client.machine_info().clients == 3
        """
    )
    result.assert_outcomes(passed=4)


def test_fresh_machines_and_machines_of_other_kinds(run: Run) -> None:
    result = run(
        """
        import pytest
        pids = set()

        @pytest.mark.kos(memory="32M")
        class TestKinds:
            def test_fresh(self, kos_fresh):
                pids.add(kos_fresh.pid)
                assert kos_fresh.memory == 32 << 20

            @pytest.mark.kos(cpus=4, machine="q35")
            def test_nearest_mark_goes_first(self, kos):
                pids.add(kos.pid)
                assert (kos.memory, kos.cpus, kos.machine_type) == (32 << 20, 4, "q35")
                assert kos.client.machine_info().cpus == 4

            def test_another_fresh_one(self, kos_fresh, kos_boot):
                other = kos_boot(memory="48M", cpus=1)
                pids.update((kos_fresh.pid, other.pid))
                assert (other.memory, other.cpus) == (48 << 20, 1)
                assert len(pids) == 4
        """
    )
    result.assert_outcomes(passed=3)


def test_a_machine_that_a_test_has_ended_is_replaced(run: Run) -> None:
    result = run(
        """
        import os, signal
        import pytest
        from kos.exceptions import KernelPanic, MachineExited

        pytestmark = pytest.mark.kos(memory="32M")

        def test_panic(kos):
            with pytest.raises(KernelPanic):
                kos.client.crash("null")

        def test_after_the_panic(kos):
            assert kos.client.ping(1) == 1

        def test_close(kos):
            kos.close()

        def test_after_the_end(kos):
            assert kos.client.ping(1) == 1

        def test_kill(kos):
            os.kill(kos.pid, signal.SIGKILL)
            with pytest.raises(MachineExited):
                kos.client.ping(1)

        def test_after_the_kill(kos):
            assert kos.client.ping(1) == 1
        """
    )
    result.assert_outcomes(passed=6)


def test_no_machine_is_left_behind(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.parametrize("mib", range(32, 38))
        def test_kinds(request, mib):
            request.node.add_marker(pytest.mark.kos(memory=f"{mib}M", cpus=1))
            vm = request.getfixturevalue("kos")
            print("pid", vm.pid)
        """,
        "-s",
    )
    result.assert_outcomes(passed=6)
    pids = re.findall(r"pid (\d+)", shown(result))
    assert len(set(pids)) == 6
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


def test_settings_are_the_defaults(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOS_MEMORY", "48M")
    monkeypatch.setenv("KOS_CPUS", "1")
    run("def test_it(kos):\n    assert (kos.memory, kos.cpus) == (48 << 20, 1)\n").assert_outcomes(
        passed=1
    )


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("memroy='32M'", "the mark kos has 'memroy'; known: memory, cpus"),
        ("leaks='maybe'", r"leaks is one of ('forbid', 'allow'), not 'maybe'"),
        ("'32M'", "takes keywords, not ('32M',)"),
        ("memory='3M'", "from 16777216 (16M)"),
    ],
)
def test_wrong_marks(run: Run, mark: str, message: str) -> None:
    result = run(f"import pytest\n@pytest.mark.kos({mark})\ndef test_it(kos):\n    pass\n")
    assert message in shown(result)
    assert result.ret != 0


# ---- what is checked ----

LEAK = """
    import pytest

    pytestmark = pytest.mark.kos(memory="32M")

    @pytest.fixture
    def client(kos):
        with kos.connect("tidy") as client:
            yield client

    def test_leaks(kos):
        kos.client.buddy_alloc(2)
        kos.connect("second").buddy_alloc(0)

    @pytest.mark.kos(leaks="allow")
    def test_may_leak(kos):
        kos.client.buddy_alloc(2)

    def test_gives_back(kos):
        kos.client.buddy_free(kos.client.buddy_alloc(2), 2)

    def test_its_fixture_gives_back(client):
        client.buddy_alloc(4)

    def test_leaks_on_a_fresh_machine(kos_fresh):
        kos_fresh.client.page_alloc(1)
"""


def test_leaks_fail_a_test_with_their_owners(run: Run) -> None:
    result = run(LEAK)
    result.assert_outcomes(passed=5, failed=2)  # a test that leaks has passed its own part
    text = shown(result)
    assert re.search(r"client 3 \(host\) still has 4 frames: 0x[0-9a-f]+000 \(order 2\)", text)
    assert re.search(r"client 4 \(second\) still has 1 frames: 0x[0-9a-f]+000 \(order 0\)", text)
    assert "client 3 (host) still has 2 frames" in text
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    summary = [line for line in result.outlines if line.startswith("FAILED")]
    assert [re.findall(r"::(\w+)", line)[0] for line in summary] == [
        "test_leaks",
        "test_leaks_on_a_fresh_machine",
    ]


def test_an_unsound_machine_fails_a_test(run: Run) -> None:
    result = run(
        """
        import pytest

        def spoil(kos):
            at = kos.abi.symbols["zones"] - kos.abi.symbols["KERNEL_BASE"]
            kos.ram[at + kos.abi.layout("zone").offset("managed")] ^= 1

        pytestmark = pytest.mark.kos(memory="32M")

        def test_spoils(kos):
            spoil(kos)

        @pytest.mark.kos(audit=False)
        def test_may_spoil(kos):
            spoil(kos)

        def test_next(kos):
            pass
        """
    )
    result.assert_outcomes(passed=3, failed=1)
    assert "zone.managed: DMA.managed is" in shown(result)


# ---- what is told ----

FAILS = """
    import pytest

    pytestmark = pytest.mark.kos(memory="32M")

    def test_fails(kos):
        print(kos.console.run("zones"))
        kos.client.buddy_alloc(5)
        assert kos.client.ping(1) == 2

    def test_panics(kos):
        kos.client.crash("null")
"""


def test_a_failing_test_shows_console_stacks_and_audit(run: Run) -> None:
    result = run(FAILS)
    result.assert_outcomes(failed=2)  # and no complaint about what the failed one left
    text = shown(result)
    first, second = text.split("_ test_panics _")
    for part in ("console of <Machine", "CPUs of <Machine", "audit of <Machine"):
        assert part in first
        assert part in second
    assert "kos> zones" in first
    assert "loop_run (kernel/core/loop.c" in first
    assert re.search(r"32  client 3 \(host\)", first)
    assert "NULL pointer" in second
    assert re.search(r"crash_null \(kernel/debug/crash.c:\d+", second)


def test_a_failing_test_leaves_a_dump(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    result = run(FAILS, "--kos-dump", str(folder))
    paths = sorted(folder.iterdir())
    assert [re.sub(r".*(test_\w+)-0\.dump", r"\1", path.name) for path in paths] == [
        "test_fails",
        "test_panics",
    ]
    for path in paths:
        assert f"kos inspect {path}" in shown(result)
        with Dump(path) as dump:
            assert int(dump.view["cpu_count"]) == 2


def test_long_names_and_machines_that_say_nothing(run: Run, tmp_path: Path) -> None:
    """Each part of the report stands for itself, and no test is kept from running by another's."""
    result = run(
        """
        import os, signal
        import pytest

        pytestmark = pytest.mark.kos(memory="32M", timeout=1.0)

        @pytest.mark.parametrize("name", ["a" * 300, "a" * 299 + "b"])
        def test_long(kos, name):
            assert 0

        def test_stopped(kos_fresh):
            os.kill(kos_fresh.pid, signal.SIGSTOP)
            assert 0

        def test_last(kos):
            assert kos.client.ping(1) == 1
        """,
        "--kos-dump",
        str(tmp_path),
    )
    result.assert_outcomes(failed=3, passed=1)
    assert len(list(tmp_path.iterdir())) == 2
    assert "CallTimeout" in shown(result)


def test_a_test_without_a_machine_is_left_alone(run: Run) -> None:
    result = run("def test_it():\n    assert 0\n")
    result.assert_outcomes(failed=1)
    assert "Machine" not in shown(result)


# ---- side by side ----


def test_workers_have_machines_of_their_own(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.parametrize("n", range(12))
        @pytest.mark.kos(memory="32M", cpus=1)
        def test_alone(kos, n):
            assert kos.client.machine_info().clients == 3
            blocks = [kos.client.buddy_alloc(0) for _ in range(50)]
            assert kos.client.client_info(0).pages == 50
            for block in blocks:
                kos.client.buddy_free(block, 0)
        """,
        "-n",
        "3",
        subprocess=True,
    )
    result.assert_outcomes(passed=12)


def test_help_and_markers_name_it(run: Run) -> None:
    assert "--kos-dump=DIR" in shown(run("", "--help"))
    assert "@pytest.mark.kos(memory, cpus, machine" in shown(run("", "--markers"))
