from .export import push_space, push_to_hub, save_with_code, write_space
from .published.convert import convert
from .published.loader import load_denoiser
from .published.pipeline import load_published_pipeline
from .standalone import standalone_source

__all__ = [
    "convert",
    "load_denoiser",
    "load_published_pipeline",
    "push_space",
    "push_to_hub",
    "save_with_code",
    "standalone_source",
    "write_space",
]
