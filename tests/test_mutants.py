"""`make mutants`: what is mutated, and what mutants come to; in a tiny tree and a bit in this."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mutants
from mutate import mutations

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300

TOY = """\
/* x < 1 */
#define SPARE 7 + 1
static const char name[] __attribute__((aligned(8))) = "x < 1"; // a && b
_Static_assert(sizeof(name) == 6, "six");

int toy_clamp(int x)
{
    volatile int limit = 40;
    if (x > limit) /* a == b */
        return limit;
    return x;
}

char toy_letter(void)
{
    return name[0];
}
"""
WEAK = """\
/* sources: kernel/mm/toy.c */
int toy_clamp(int x);
int main(void)
{
    return toy_clamp(90) != 40;
}
"""
STRONG = """\
/* sources: kernel/mm/toy.c */
int toy_clamp(int x);
char toy_letter(void);
int main(void)
{
    for (int x = -3; x < 50; x++)
        if (toy_clamp(x) != (x < 40 ? x : 40))
            return 1;
    return toy_letter() != 'x';
}
"""


class Tree:
    """A tree with one source to mutate, and one unit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "kernel/mm").mkdir(parents=True)
        (root / "tests/unit").mkdir(parents=True)

    def source(self, text: str) -> "Tree":
        (self.root / "kernel/mm/toy.c").write_text(text)
        return self

    def unit(self, text: str) -> "Tree":
        (self.root / "tests/unit/test_toy.c").write_text(text)
        return self

    def equivalents(self, text: str) -> "Tree":
        (self.root / mutants.EQUIVALENTS).write_text(text)
        return self

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [
            sys.executable,
            str(ROOT / "scripts/mutants.py"),
            "--root",
            str(self.root),
            *options,
        ]
        return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)

    def result(self, *options: str) -> dict[str, Any]:
        path = self.root / "result.json"
        done = self.run("--json", str(path), *options)
        assert done.returncode in (0, 1), done.stderr
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path).source(TOY).unit(STRONG)


def function(body: str) -> str:
    """A unit's own test and the mutated function in one: f(x) must be as the test says."""
    return f"int f(int x);\nint f(int x)\n{{\n    {body}\n}}\n"


def changes(source: str) -> set[tuple[str, str]]:
    return {(source[one.start : one.end], one.new) for one in mutations(source)}


def test_only_code_is_mutated() -> None:
    places = {TOY.count("\n", 0, one.start) + 1 for one in mutations(TOY)}
    assert places == {8, 9, 10, 11, 16}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x < 3;", {("<", "<="), ("<", ">="), ("3", "4"), ("3", "2"), ("x < 3", "0")}),
        ("if (x && g()) h();", {("x && g()", "!(x && g())"), ("&&", "||"), ("h();", ";")}),
        ("x += g(x) << 1;", {("+=", "-="), ("+=", "="), ("<<", ">>"), ("x += g(x) << 1;", ";")}),
        ("return x ? -x : ~x;", {("x", "!(x)"), ("-", ""), ("~", "")}),
        ("while (x--) break;", {("x--", "!(x--)"), ("--", "++"), ("break;", ";")}),
        ("do { x++; } while (x != 0x10ul);", {("x++;", ";"), ("0x10ul", "0x11ul"), ("!=", "==")}),
        ("for_each(c) h(c);", {("h(c);", ";")}),
        ("return MIN(x, true);", {("MIN", "MAX"), ("true", "false")}),
        ('KASSERT(x, "%d", x + 1);', {('KASSERT(x, "%d", x + 1);', ";")}),
        ("int *p = &x; p->a = (u8 *)x;", {("p->a = (u8 *)x;", ";")}),
    ],
)
def test_kinds_of_mutations(body: str, expected: set[tuple[str, str]]) -> None:
    assert expected <= changes(function(body))


@pytest.mark.parametrize(
    "body",
    [
        'printk("1 < 2 %d");',
        "/* 1 < 2 */ // 3 == 4",
        "\n#if 1 < 2\n#endif\n",
        '__asm__("bsf %1, %0" : "=r"(x) : "rm"(x + 1) : "cc");',
        '_Static_assert(1 < 2, "1");',
    ],
)
def test_what_is_no_code_is_left_alone(body: str) -> None:
    source = function(f"{body} return x;")
    texts = {old for old, _ in changes(source)} - {"x", 'printk("1 < 2 %d");'}
    assert not texts


def test_messages_of_assertions_are_left_alone() -> None:
    assert ("1", "2") not in changes(function('KASSERT(x, "%d", x + 1);'))
    assert ("1", "2") in changes(function('KASSERT(x + 1, "%d", x);'))


@pytest.mark.parametrize("file", mutants.files_of(ROOT))
def test_mutants_of_the_kernel_differ_from_it_and_each_other(file: str) -> None:
    source = (ROOT / file).read_text()
    mutated = [one.apply(source) for one in mutations(source)]
    assert len({source, *mutated}) == len(mutated) + 1
    assert {text.count("\n") for text in mutated} <= {source.count("\n")}


def test_consoles_are_not_mutated() -> None:
    assert "kernel/mm/buddy.h" in mutants.files_of(ROOT)
    assert not [file for file in mutants.files_of(ROOT) if "console" in file]


def test_good_tests_kill_all(tree: Tree) -> None:
    result = tree.result()
    score = result["scores"]["kernel/mm/toy.c"]
    # The limit itself gives the limit either way.
    assert [one["new"] for one in result["survivors"]] == ["if (x >= limit) /* a == b */"]
    assert score["killed"] >= 7
    assert score["survived"] == 1


def test_survivors_are_shown(tree: Tree) -> None:
    done = tree.unit(WEAK).run()
    assert done.returncode == 1
    assert "kernel/mm/toy.c:9: if (x > limit) /* a == b */\n    => if (x >= limit) /" in done.stdout
    assert "kernel/mm/toy.c:11: return x;\n    => return 0;" in done.stdout


def test_the_same_object_code_is_no_mutant(tree: Tree) -> None:
    tree.source("int toy_clamp(int x)\n{\n    return x + 0;\n}\n")
    tree.unit("/* sources: kernel/mm/toy.c */\nint toy_clamp(int);\nint main(void) { return 0; }\n")
    result = tree.result()
    assert result["scores"]["total"]["equivalent"] == 1
    assert {one["new"] for one in result["survivors"]} == {"return x + 1;", "return 0;"}


def test_what_does_not_compile_is_no_mutant(tree: Tree) -> None:
    tree.source(
        "struct toy { int x; };\n"
        "int toy_clamp(int x)\n{\n    struct toy t = {x};\n"
        "    struct toy *p = &t;\n    return p->x;\n}\n"
    )
    tree.unit(
        "/* sources: kernel/mm/toy.c */\nint toy_clamp(int);\n"
        "int main(void) { return toy_clamp(6) != 6; }\n"
    )
    score = tree.result()["scores"]["total"]
    assert score["uncompiled"] >= 1
    assert score["survived"] == 0


@pytest.mark.parametrize(
    ("body", "new"),
    [
        ("while (x) { x = x - 1; } return x;", "while (x) { ; } return x;"),
        ("static int a[4]; return a[x & 3];", "static int a[4]; return a[x & 4];"),
        (
            "int a[4] = {0}; int *p = a; return p[(x & 3) + 0];",
            "int a[4] = {0}; int *p = a; return p[(x & 3) + 1];",
        ),
    ],
    ids=["a loop without end", "past an array", "read by a pointer past an array"],
)
def test_a_mutant_that_hangs_or_crashes_is_killed(tree: Tree, body: str, new: str) -> None:
    tree.source(function(body))
    call = "for (int x = 0; x < 8; x++) if (f(x)) return 1;"
    tree.unit(
        f"/* sources: kernel/mm/toy.c */\nint f(int);\nint main(void) {{ {call} return 0; }}\n"
    )
    source = (tree.root / "kernel/mm/toy.c").read_text()
    assert new in {mutant.new for mutant in mutants.mutants_of(tree.root, "kernel/mm/toy.c")}, (
        source
    )
    assert new not in {one["new"] for one in tree.result()["survivors"]}


LISTED = (
    "kernel/mm/toy.c: if (x > limit) /* a == b */ => if (x >= limit) /* a == b */ # the limit\n"
)


def test_listed_equivalents_do_not_count(tree: Tree) -> None:
    done = tree.equivalents("# why\n\n" + LISTED).run()
    assert done.returncode == 0, done.stdout
    assert "100.0%" in done.stdout
    assert "=>" not in done.stdout


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        (LISTED.replace("x >", "y >", 1), 1, "fits no mutant: kernel/mm/toy.c: if (y > limit)"),
        (
            "kernel/mm/toy.c: return x; => return 0; # no",
            1,
            "is killed: kernel/mm/toy.c: return x;",
        ),
        ("kernel/mm/toy.c: return x; => return 0;", 2, "equivalents.txt:1: expected 'FILE"),
        ("kernel/mm/toy.c: return x; # why", 2, "equivalents.txt:1: expected 'FILE"),
    ],
)
def test_a_stale_list_is_an_error(tree: Tree, line: str, status: int, says: str) -> None:
    done = tree.equivalents(line).run("--minimum", "0")
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_the_minimum_decides(tree: Tree) -> None:
    assert tree.unit(WEAK).run("--minimum", "10").returncode == 0
    assert tree.run("--minimum", "99").returncode == 1


def test_a_sample_is_the_same_again(tree: Tree) -> None:
    tree.unit(WEAK)
    runs = [tree.result("--sample", "5", "--seed", str(seed)) for seed in (1, 1, 2, 3)]
    assert all(sum(run["scores"]["total"][end] for end in ENDS) == 5 for run in runs)
    assert runs[0]["survivors"] == runs[1]["survivors"]
    assert len({json.dumps(run["survivors"]) for run in runs}) > 1


ENDS = (mutants.KILLED, mutants.SURVIVED, mutants.EQUIVALENT, mutants.UNCOMPILED)


@pytest.mark.parametrize(
    ("source", "unit", "options", "says"),
    [
        (TOY, STRONG, ["--file", "kernel/mm/none.c"], "'kernel/mm/none.c' is none of the mutated"),
        (TOY, STRONG.replace("!=", "=="), [], "test_toy fails on the unmutated sources: status 1"),
        ("int f(int x) { return x < y; }", STRONG, [], "kernel/mm/toy.c does not compile"),
        ("int x;", STRONG, [], "nothing to mutate"),
        (TOY, STRONG.replace("toy_clamp", "toy_crop"), [], "test_toy does not link"),
    ],
)
def test_what_cannot_be_done(
    tree: Tree, source: str, unit: str, options: list[str], says: str
) -> None:
    done = tree.source(source).unit(unit).run(*options)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_sample_of_the_kernel(tmp_path: Path) -> None:
    """All of the tool on real sources; these mutants are killed by the fast one of the units."""
    argv = [sys.executable, "scripts/mutants.py", "--file", "kernel/mm/pool.c"]
    done = subprocess.run(
        [*argv, "--file", "kernel/mm/pcp.c", "--sample", "12", "--json", tmp_path / "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = json.loads((tmp_path / "json").read_text())["scores"]["total"]
    assert total["killed"] >= 8
