"""The classes that inherit from a class, as far as they are imported."""


def loaded_subclasses(parent: type) -> list[type]:
    """All classes below `parent`, each before its own.

    Example:
        >>> loaded_subclasses(type("Parent", (), {}))
        []
    """
    descendants = []
    for child in parent.__subclasses__():
        descendants += [child, *loaded_subclasses(child)]
    return descendants
