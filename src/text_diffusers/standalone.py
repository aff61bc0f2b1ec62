"""The code of a class as one file that needs no `text_diffusers`."""

import ast
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "text_diffusers"


def standalone_source(module: str) -> str:
    """The source of a leaf module with the modules of its own room that it imports put before it.

    Leaves import names from room-mates without renaming them, so their code can stand in one file as it is.

    Raises:
        ValueError: if a module imports another room, renames what it imports, or defines a name that another has.
    """
    imports: dict[str, None] = {}
    bodies, owners = [], {}
    for name in in_order_of_use(module):
        source = module_source(name)
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                if room_mate(node, name) is None:
                    imports[ast.unparse(node)] = None
                continue
            for defined in defined_names(node):
                if owners.setdefault(defined, name) != name:
                    raise ValueError(f"`{defined}` must be defined once, got it in {owners[defined]} and {name}.")
        bodies.append(without_header(source, tree))
    docstring = ast.get_docstring(ast.parse(module_source(module)), clean=False)
    return f'"""{docstring}"""\n\n' + "\n".join(imports) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def in_order_of_use(module: str) -> list[str]:
    """The room-mates of a module, each after those it imports, and at last the module itself."""
    found: dict[str, None] = {}
    for node in ast.parse(module_source(module)).body:
        mate = room_mate(node, module)
        if mate is not None:
            found |= dict.fromkeys(in_order_of_use(mate))
    return [*found, module]


def room_mate(node: ast.AST, module: str) -> str | None:
    """The module of its own room that a statement of `module` imports from, if any.

    Raises:
        ValueError: if it imports from another room, or renames.
    """
    source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
    if not isinstance(node, ast.ImportFrom) or not source.startswith(PACKAGE):
        return None
    if source.rpartition(".")[0] != module.rpartition(".")[0] or any(alias.asname for alias in node.names):
        raise ValueError(f"{module} must import from its own room, without renaming, got: {ast.unparse(node)}")
    return source


def defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def without_header(source: str, tree: ast.Module) -> str:
    """The source from its first statement that is neither docstring nor import."""
    rest = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    first = next(node for node in rest if not isinstance(node, (ast.Import, ast.ImportFrom)))
    line = min([first.lineno, *(decorator.lineno for decorator in getattr(first, "decorator_list", []))])
    lines = source.splitlines()
    while lines[line - 2].startswith("#"):  # a comment belongs to what it precedes
        line -= 1
    return "\n".join(lines[line - 1 :]).strip()


def module_source(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"`module` must be importable, got {module!r}.")
    return Path(spec.origin).read_text(encoding="utf-8")
