from .export import push_space, push_to_hub, save_with_code

__all__ = [
    "push_space",
    "push_to_hub",
    "save_with_code",
]
