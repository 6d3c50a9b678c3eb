"""The error messages of the package, read from its source, and whether they tell the reader what to do."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parents[2] / "rnnjax"
ELSEWHERE = "{}"  # a value that is known only when the message is written
VERBS = (
    "Add|Batch|Build|Call|Cast|Check|Clip|Copy|Correct|Cut|Drop|Embed|Give|Install|Leave|Let|List|Look|Make|Name|Number|"
    "Override|Pad|Pass|Reduce|Regularise|Reshape|Return|Skip|Solve|Sort|Swap|Take|Use|Wait|Write"
)


def instructs(message: str) -> bool:
    """Whether a sentence after the first begins with the imperative of a verb."""
    return re.search(rf"(\.|{re.escape(ELSEWHERE)}) ({VERBS})\b", message) is not None


class Message(NamedTuple):
    """A message as the source has it, with `{}` for values."""

    place: str
    text: str


@lru_cache
def messages() -> tuple[Message, ...]:
    """Every message of an error that the package raises, and every sentence by which it refuses a cell."""
    return tuple(message for file in sorted(HOUSE.rglob("*.py")) for message in Source(file).messages())


class Source:
    """One module: its functions and its string constants, by name."""

    def __init__(self, file: Path):
        self.name = file.relative_to(HOUSE).as_posix()
        self.nodes = list(ast.walk(ast.parse(file.read_text())))
        self.functions = {node.name: node for node in self.nodes if isinstance(node, ast.FunctionDef)}
        self.constants = {
            target.id: node.value
            for node in self.nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def messages(self) -> Iterator[Message]:
        for node in self.nodes:
            for expression in _expressions(node):
                text = self.text(expression)
                if not re.fullmatch(r"(\w+: )?(\{\} ?)*", text):  # such a sentence is written, and counted, elsewhere
                    yield Message(f"{self.name}:{expression.lineno}", text)

    def text(self, node: ast.expr) -> str:
        """A string as far as the source tells it."""
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.JoinedStr(values=parts):
                return "".join(map(self.text, parts))
            case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name) if name in self.constants:
                return self.text(self.constants[name])
            case ast.BinOp(left=left, right=right):
                return self.text(left) + self.text(right)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                returned = (each.value for each in ast.walk(self.functions[name]) if isinstance(each, ast.Return))
                return " ".join(self.text(value) for value in returned if value is not None)
            case ast.Call(func=ast.Name(id=name), args=arguments) if name == "Refusal" or name.endswith("Error"):
                return " ".join(map(self.text, arguments))
            case ast.Call(func=ast.Call(), args=arguments):  # type(error)(number, message)
                return " ".join(map(self.text, arguments))
        return ELSEWHERE


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of messages: of raised exceptions, of refusals, and of reasons that `refusal` returns."""
    match node:
        case ast.Raise(exc=ast.Call() as raised):
            yield raised
        case ast.Call(func=ast.Name(id="Refusal")):
            yield node
        case ast.FunctionDef(name="refusal"):
            returned = (each.value for each in ast.walk(node) if isinstance(each, ast.Return))
            yield from (value for value in returned if isinstance(value, ast.JoinedStr))
