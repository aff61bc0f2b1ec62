from .export import push_space, push_to_hub, save_with_code, write_space
from .standalone import standalone_source

__all__ = [
    "push_space",
    "push_to_hub",
    "save_with_code",
    "standalone_source",
    "write_space",
]
