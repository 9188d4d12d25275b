"""Lets the reference read docstrings that have no empty line between their sections."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<=[^\n])\n(?=(Args|Attributes|Returns|Raises|Gradients|References):)")


class Sections(griffe.Extension):
    """Puts an empty line before each section, which griffe asks for."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of one object, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
