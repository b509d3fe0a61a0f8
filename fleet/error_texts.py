"""The texts of errors that this project's code says, taken from the code itself.

A text is a template: what the code fills in stands there as ``…``. Found are those of exceptions that are
raised, of ``fail_json``, and of findings, whether written where they are used, put together by a helper that
returns them, or kept in a variable of the same function. What has no words of its own (``…: …``) is none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Where code stands whose errors users see, as globs below the checkout.
SOURCES = ("fleet/**/*.py", "library/*.py", "module_utils/*.py", "plugins/*/*.py", "roles/*/files/*.py")

HOLE = "…"
#: What says one without being raised.
_FINDINGS = frozenset({"Finding", "Hit", "Judgement", "Problem", "Rule", "fail_json"})
#: Which of their arguments, if not all, are message and mend.
_ARGUMENTS = {"Hit": slice(1, None), "Rule": slice(2, 4)}
#: Files whose generators of text give reasons to refuse something.
_REASONS = frozenset({"module_utils/image_rules.py"})
_WORD = re.compile(r"[A-Za-z']{2,}")
_ENOUGH_WORDS = 2
_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, order=True)
class ErrorText:
    """One error text: what is said, what is said of its mend, and the file that says it."""

    message: str
    mend: str = ""
    file: str = ""

    def matches(self, said: str) -> bool:
        """Whether a message that was said is this text, filled in; others may stand around it."""
        parts = [re.escape(part).replace(r"\ ", r"\s+") for part in self.message.split(HOLE)]
        return re.search(".*?".join(parts), said, re.DOTALL) is not None


def error_texts(project: Path) -> list[ErrorText]:
    """All error texts of a checkout, each once a file, sorted by file and text."""
    files = sorted({path for pattern in SOURCES for path in project.glob(pattern)})
    texts = {text for path in files for text in _of_file(path, path.relative_to(project).as_posix())}
    return sorted(texts, key=lambda text: (text.file, text.message, text.mend))


def _of_file(path: Path, name: str) -> Iterator[ErrorText]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers = _FINDINGS | {
        node.name for node in ast.walk(tree) if isinstance(node, _Function) and _makes(node)
    }
    for scope in (tree, *(node for node in ast.walk(tree) if isinstance(node, _Function))):
        variables = _variables(scope)
        for node in _own(scope):
            call = node.exc if isinstance(node, ast.Raise) else node
            if name in _REASONS:
                if isinstance(node, ast.Yield) and node.value:
                    yield from (ErrorText(text, "", name) for text in _templates(node.value, variables))
            elif isinstance(call, ast.Call) and (isinstance(node, ast.Raise) or _name(call.func) in makers):
                yield from _of_call(call, variables, name)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of functions within it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, _Function):
            yield child
            yield from _own(child)


def _makes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function returns an error or a finding, by its annotation."""
    returned = ast.unparse(function.returns) if function.returns else ""
    return bool(re.fullmatch(r"[\w.]*(Error|Exception|Finding|Judgement|Problem)\b.*", returned.strip("'\"")))


def _variables(scope: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in _own(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _of_call(call: ast.Call, variables: dict[str, list[ast.expr]], file: str) -> Iterator[ErrorText]:
    named = [keyword.value for keyword in call.keywords if keyword.arg in ("msg", "message", "what")]
    mends = [keyword.value for keyword in call.keywords if keyword.arg == "mend"]
    given = call.args[_ARGUMENTS.get(_name(call.func), slice(None))]
    texts = [_templates(value, variables) for value in (*given, *named, *mends)]
    texts = [templates for templates in texts if templates]
    if not texts:
        return
    # Of several ways to a mend it is not known which one goes with which message.
    mend = texts[1][0] if len(texts) > 1 and len(texts[1]) == 1 else ""
    for message in texts[0]:
        yield ErrorText(message, mend, file)


def _templates(value: ast.expr, variables: dict[str, list[ast.expr]]) -> list[str]:
    """What a text may be, of each way to it; nothing for what has no words."""
    texts = (re.sub(rf"{HOLE}[{HOLE}]+", HOLE, " ".join(text.split())) for text in _ways(value, variables))
    return [
        text for text in dict.fromkeys(texts) if " " in text and len(_WORD.findall(text)) >= _ENOUGH_WORDS
    ]


def _ways(value: ast.expr, variables: dict[str, list[ast.expr]]) -> list[str]:  # noqa: PLR0911 - a table
    match value:
        case ast.Constant(value=str(text)):
            return [re.sub(r"\{\w*\}", HOLE, text)]
        case ast.JoinedStr(values=parts):
            return ["".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)]
        case ast.IfExp(body=yes, orelse=no):
            return [*_ways(yes, variables), *_ways(no, variables)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in _ways(left, variables) for b in _ways(right, variables)]
        case ast.BinOp(left=left, op=ast.Mod()):
            return [re.sub(r"%[-\d.]*[a-z]", HOLE, text) for text in _ways(left, variables)]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return [re.sub(r"\{[^}]*\}", HOLE, text)]
        case ast.Name(id=name) if name in variables:
            rest = {other: values for other, values in variables.items() if other != name}
            return [text for one in variables[name] for text in _ways(one, rest)]
    return [HOLE]


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
