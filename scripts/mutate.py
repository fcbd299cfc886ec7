"""Mutations of a C source: each is one small change that a good test should notice.

A tokenizer of our own skips what is not code: comments, strings, preprocessor lines, attributes,
assembly, static assertions and the messages of KASSERT. A parser of statements, no more exact than
it must be, finds conditions, returned values and whole statements. What comes out need not compile:
whoever uses it asks the compiler.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<number>0[xX][0-9a-fA-F]+[uUlL]*|\d+[uUlL]*)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<sign><<=|>>=|\.\.\.|->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|[^\s\w])""",
    re.VERBOSE | re.DOTALL,
)
DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
# With these only what is in the parentheses behind them is skipped.
SKIPPED = {"__attribute__", "__asm__", "_Static_assert", "__asm", "asm"}

BINARY = {
    "<": ("<=", ">="),
    ">": (">=", "<="),
    "<=": ("<", ">"),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "&&": ("||",),
    "||": ("&&",),
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "%": ("*",),
    "&": ("|",),
    "|": ("&",),
    "^": ("&",),
    "<<": (">>",),
    ">>": ("<<",),
    "=": (),
    "+=": ("-=", "="),
    "-=": ("+=", "="),
    "*=": ("/=",),
    "/=": ("*=",),
    "|=": ("&=", "="),
    "&=": ("|=", "="),
    "^=": ("=",),
    "<<=": (">>=",),
    ">>=": ("<<=",),
}
NAMES = {
    "MIN": "MAX",
    "MAX": "MIN",
    "ALIGN_UP": "ALIGN_DOWN",
    "ALIGN_DOWN": "ALIGN_UP",
    "true": "false",
    "false": "true",
}
CONDITIONAL = {"if", "while", "switch"}
TYPES = {
    *("const", "static", "struct", "union", "enum", "unsigned", "signed", "volatile", "register"),
    *("void", "char", "short", "int", "long", "bool", "size_t", "extern", "_Static_assert"),
    *("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"),
}
OPENING, CLOSING = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}


@dataclass(frozen=True)
class Token:
    """A piece of code: what it is, its text, and where it starts in the source."""

    kind: str
    text: str
    at: int

    @property
    def end(self) -> int:
        return self.at + len(self.text)


@dataclass(frozen=True, order=True)
class Mutation:
    """Replaces source[start:end] by `new`; `what` names the kind of change."""

    start: int
    end: int
    new: str
    what: str

    def apply(self, source: str) -> str:
        """The mutated source. It has as many lines as before."""
        return source[: self.start] + self.new + source[self.end :]


def tokens_of(source: str) -> list[Token]:
    """The tokens that are code, without what is never mutated."""
    blank = DIRECTIVE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), _without_comments(source))
    found = [
        Token(str(match.lastgroup), match[0], match.start())
        for match in TOKEN.finditer(blank)
        if match.lastgroup != "space"
    ]
    return list(_without_skipped(found))


def _without_comments(source: str) -> str:
    def clear(match: re.Match[str]) -> str:
        text = match[0]
        return re.sub(r"[^\n]", " ", text) if text.startswith(("/*", "//")) else text

    return re.sub(r'"(?:\\.|[^"\\\n])*"|/\*.*?\*/|//[^\n]*', clear, source, flags=re.DOTALL)


def _without_skipped(tokens: list[Token]) -> Iterator[Token]:
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.text in SKIPPED:
            while at < len(tokens) and tokens[at].text != "(":
                at += 1
            at = _behind(tokens, at)
        elif token.text == "KASSERT":
            end = _behind(tokens, at + 1)
            comma = _find(tokens, at + 2, end, {","})
            yield from tokens[at:comma]
            yield tokens[end - 1]
            at = end
        else:
            yield token
            at += 1


def _behind(tokens: list[Token], at: int) -> int:
    """The index behind the bracket that closes the one at `at`."""
    depth = 0
    while at < len(tokens):
        depth += (tokens[at].text in OPENING) - (tokens[at].text in CLOSING)
        at += 1
        if not depth:
            break
    return at


def _find(tokens: list[Token], at: int, end: int, texts: set[str]) -> int:
    """The index of the first of some signs outside of all brackets; `end` when there is none."""
    while at < end and tokens[at].text not in texts:
        at = _behind(tokens, at) if tokens[at].text in OPENING else at + 1
    return min(at, end)


class _Parser:
    """Goes through a file's functions and notes the mutations of their statements."""

    def __init__(self, source: str, tokens: list[Token]) -> None:
        self.source = source
        self.tokens = tokens
        self.found: list[Mutation] = []
        self.returns_bool = False

    def note(self, first: int, last: int, new: str, what: str) -> None:
        start, end = self.tokens[first].at, self.tokens[last].end
        lines = self.source[start:end].count("\n") - new.count("\n")
        self.found.append(Mutation(start, end, new + "\n" * lines, what))

    def text(self, first: int, last: int) -> str:
        return self.source[self.tokens[first].at : self.tokens[last].end]

    def file(self) -> None:
        at, start = 0, 0
        while at < len(self.tokens):
            text = self.tokens[at].text
            if text == "{" and at and self.tokens[at - 1].text == ")":
                self.returns_bool = any(t.text == "bool" for t in self.tokens[start : start + 4])
                at = start = self.statement(at)
            elif text in OPENING:
                at = _behind(self.tokens, at)
            else:
                at += 1
                if text == ";":
                    start = at

    def statement(self, at: int) -> int:
        """Notes what can be done with the statement at `at`; returns the index behind it."""
        token = self.tokens[at]
        if token.text == "{":
            at += 1
            while self.tokens[at].text != "}":
                at = self.statement(at)
            return at + 1
        if token.text in CONDITIONAL:
            end = _behind(self.tokens, at + 1)
            self.condition(at + 2, end - 2)
            return self.otherwise(self.statement(end))
        if token.text == "for":
            return self.statement(_behind(self.tokens, at + 1))
        if token.text == "do":
            at = self.statement(at + 1)
            end = _behind(self.tokens, at + 1)
            self.condition(at + 2, end - 2)
            return end + 1
        if token.kind == "name" and self.tokens[at + 1].text == "(":
            end = _behind(self.tokens, at + 1)
            if self.tokens[end].text == "{" or self.tokens[end].kind == "name":
                return self.statement(end)  # a loop that is a macro
        return self.simple(at)

    def otherwise(self, at: int) -> int:
        return self.statement(at + 1) if self.tokens[at].text == "else" else at

    def condition(self, first: int, last: int) -> None:
        self.note(first, last, f"!({self.text(first, last)})", "negate")

    def simple(self, at: int) -> int:
        end = _find(self.tokens, at, len(self.tokens), {";"})
        first = self.tokens[at]
        if first.text == "return":
            if end > at + 1:
                self.result(at + 1, end - 1)
        elif first.text in {"case", "default"}:
            return _find(self.tokens, at, len(self.tokens), {":"}) + 1
        elif end > at and not self.declares(at):
            self.note(at, end, ";", "remove")
        return end + 1

    def result(self, first: int, last: int) -> None:
        text = self.text(first, last)
        if first == last and (self.tokens[first].kind == "number" or text in NAMES):
            return
        self.note(first, last, "0", "return")
        if self.returns_bool:
            self.note(first, last, f"!({text})", "negate")

    def declares(self, at: int) -> bool:
        first, second = self.tokens[at], self.tokens[at + 1]
        return first.text in TYPES or (first.kind == second.kind == "name")


def _is_operand(token: Token | None) -> bool:
    if token is None:
        return False
    if token.kind == "name":
        return token.text not in {"return", "case", "else", "do", "sizeof"} and (
            token.text not in TYPES
        )
    return token.kind in {"number", "string"} or token.text in {")", "]", "++", "--"}


def _number(text: str) -> Iterator[str]:
    digits = re.sub(r"[uUlL]+$", "", text)
    suffix = text[len(digits) :]
    value = int(digits, 0) if not re.fullmatch(r"0[0-7]+", digits) else int(digits, 8)
    for new in (value + 1, value - 1):
        if new >= 0:
            yield (f"0x{new:x}" if digits.lower().startswith("0x") else str(new)) + suffix


def _ternary(source: str, tokens: list[Token], at: int) -> Mutation | None:
    """Negates the condition that ends before the question mark."""
    first, depth = at - 1, 0
    ends = {"=", "return", ",", ";", "?", ":", "{", *(sign for sign in BINARY if sign[-1] == "=")}
    ends -= {"==", "!=", "<=", ">="}
    while first >= 0:
        text = tokens[first].text
        depth += (text in {")", "]"}) - (text in {"(", "["})
        if depth < 0 or (not depth and text in ends):
            break
        first -= 1
    start, end = tokens[first + 1].at, tokens[at - 1].end
    if start >= end:
        return None
    return Mutation(start, end, f"!({source[start:end]})", "negate")


def _of_token(source: str, tokens: list[Token], at: int) -> Iterator[Mutation]:
    token = tokens[at]
    before = tokens[at - 1] if at else None

    def to(new: str, what: str) -> Mutation:
        return Mutation(token.at, token.end, new, what)

    if token.kind == "number":
        yield from (to(new, "constant") for new in _number(token.text))
    elif token.text in NAMES:
        yield to(NAMES[token.text], "name")
    elif token.text in {"++", "--"}:
        yield to("--" if token.text == "++" else "++", "step")
    elif token.text == "?":
        negated = _ternary(source, tokens, at)
        if negated:
            yield negated
    elif token.text in BINARY and _is_operand(before):
        yield from (to(new, "operator") for new in BINARY[token.text])
    elif token.text in {"!", "~", "-"} and not _is_operand(before):
        yield to("", "operator")


def mutations(source: str) -> list[Mutation]:
    """All mutations of a source, in the order of their places.

    Args:
        source: A C file's text.

    Returns:
        Mutations that all differ from the source and from one another.
    """
    tokens = tokens_of(source)
    parser = _Parser(source, tokens)
    parser.file()
    found = parser.found
    for at in range(len(tokens)):
        found += _of_token(source, tokens, at)
    unique = {mutation.apply(source): mutation for mutation in reversed(found)}
    unique.pop(source, None)
    return sorted(unique.values())
