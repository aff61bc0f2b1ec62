"""An extension of mkdocstrings: the `Example:` of a docstring is shown as code that can be copied."""

import re
from typing import Any

from griffe import Extension


class Examples(Extension):
    """Griffe knows the section as `Examples:`."""

    def on_object(self, *, obj: Any, **kwargs: Any):
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
