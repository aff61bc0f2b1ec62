"""The code of a class as one file that needs no `text_diffusers`.

Stock diffusers loads such a file beside the weights. Schedulers, pipelines and models are leaves: they import nothing
of this package but their own room and the rooms below it, without renaming, so that the code of all these modules can
stand in one file as it is.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "text_diffusers"

# What a leaf may import beside its own room.
LOWER_ROOMS = {
    "common": (),
    "schedulers": ("common",),
    "models": ("common",),
    "pipelines": ("common", "models"),
}


def standalone_source(module: str) -> str:
    """Source of a leaf module, after the modules of this package that it imports.

    Args:
        module: dotted name, such as "text_diffusers.schedulers.scheduling_d3pm".

    Raises:
        ValueError: if a module imports a room that it may not, renames what it imports, or defines a name that
            another one has.
    """
    # Dictionaries serve as ordered sets: each import once, in the order of first use.
    imports: dict[str, None] = {}

    # Which module has defined a name: in one file they all share a namespace.
    owners: dict[str, str] = {}
    bodies = []

    for name in in_order_of_use(module):
        source = module_source(name)
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                # Other libraries are imported at the top; our own modules are there as code.
                if imported_module(node, name) is None:
                    imports[ast.unparse(node)] = None
                continue

            # A later definition would silently replace an earlier one that other code relies on.
            for defined in defined_names(node):
                owner = owners.setdefault(defined, name)
                if owner != name:
                    raise ValueError(
                        f"`{defined}` must be defined once, got it in {owner} and {name}."
                    )
        bodies.append(without_header(source, tree))

    # The file is about the class that was asked for, so its docstring heads it.
    docstring = ast.get_docstring(ast.parse(module_source(module)), clean=False)
    return f'"""{docstring}"""\n\n' + "\n".join(imports) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"


def in_order_of_use(module: str) -> list[str]:
    """The modules of this package that a module needs, each after those it imports itself, and the module last."""
    needed: dict[str, None] = {}

    # Depth first; modules cannot import each other in a circle, so this comes to an end.
    def visit(name: str):
        if name in needed:
            return
        for node in ast.parse(module_source(name)).body:
            imported = imported_module(node, name)
            if imported is not None:
                visit(imported)
        needed[name] = None

    visit(module)
    return [*needed]


def imported_module(node: ast.AST, importer: str) -> str | None:
    """The module of this package that a statement of `importer` imports from, if any.

    Raises:
        ValueError: if it imports from a room that it may not, or renames.
    """
    if not isinstance(node, ast.ImportFrom):
        return None
    source = node.module or ""
    if source.partition(".")[0] != PACKAGE:
        return None

    # An alias would name nothing once the code stands in the same file.
    own_room = room_of(importer)
    allowed = (own_room, *LOWER_ROOMS.get(own_room, ()))
    if room_of(source) not in allowed or any(alias.asname for alias in node.names):
        rooms = " and ".join(allowed)
        raise ValueError(
            f"{importer} must import from {rooms}, without renaming, got: {ast.unparse(node)}"
        )
    return source


def room_of(module: str) -> str:
    """The sub-package that a module belongs to: "schedulers" of "text_diffusers.schedulers.scheduling_d3pm"."""
    # Modules at the top of the package belong to no room.
    return module.split(".")[1] if module.count(".") > 1 else ""


def defined_names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        targets = []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def without_header(source: str, tree: ast.Module) -> str:
    """The source from its first statement that is neither docstring nor import."""
    statements = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    first = next(node for node in statements if not isinstance(node, (ast.Import, ast.ImportFrom)))

    # Syntax trees count a decorated class from its `class` line.
    decorators = getattr(first, "decorator_list", [])
    line = min([first.lineno, *(decorator.lineno for decorator in decorators)])

    # A comment belongs to what it precedes.
    lines = source.splitlines()
    while lines[line - 2].startswith("#"):
        line -= 1
    return "\n".join(lines[line - 1 :]).strip()


def module_source(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"`module` must be importable, got {module!r}.")
    return Path(spec.origin).read_text(encoding="utf-8")
