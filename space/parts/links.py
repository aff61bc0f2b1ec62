"""Addresses of settings: `?tab=write&prompt=She+was&seed=3` opens a tab with the settings filled in.

An address is checked as what a browser sends is: a value beyond its limits is refused in words, and none is changed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints
from urllib.parse import parse_qsl, urlencode

import gradio as gr

from text_diffusers.space.limits import Refusal

TAB = "tab"  # the parameter that names the tab
NOT_OURS = "__"  # begins the parameters of Gradio and of the Hub, such as `__theme`
MOST_PARAMETERS = 64
SHOWN_CHARACTERS = 40  # of a wrong name, in the sentence about it
WHOLE = re.compile("-?[0-9]{1,15}")
DECIMAL = re.compile(r"-?[0-9]{1,15}\.[0-9]{1,15}")


@dataclass
class LinkedTab:
    """A tab whose settings an address can hold.

    Attributes:
        request: a dataclass of the settings.
        fields: components by the names of its fields.
        check: raises a `Refusal` if a request is beyond its limits; it does not run the model.
        answer: of a tab that answers every change at once, the values of `outputs` for a request and a language.
        outputs: components of the answer.
    """

    request: type
    fields: Mapping[str, Any]
    check: Callable[[Any], Any]
    answer: Callable[[Any, str], Sequence] | None = None
    outputs: Sequence[Any] = ()

    @property
    def names(self) -> list[str]:
        """Fields that a visitor sees; the others keep the values that the page begins with."""
        return [
            name
            for name, component in self.fields.items()
            if component.visible is True and not isinstance(component, gr.State)
        ]

    @property
    def first_values(self) -> dict[str, Any]:
        """What the page begins with."""
        values = {name: component.value for name, component in self.fields.items()}
        for name, component in self.fields.items():
            # An empty box of a component has no value, and that of a browser an empty text.
            if isinstance(component, gr.Textbox):
                values[name] = component.value or ""
        return values

    def address(self, tab: str, values: Mapping[str, Any]) -> str:
        """The query of settings of this tab, which may have values of hidden fields, too."""
        return address_of(tab, self.settings(values))

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that a visitor sees."""
        return {name: values[name] for name in self.names}


def address_of(tab: str, values: Mapping[str, Any]) -> str:
    """The query of the settings of a tab; a list becomes a parameter for each of its values.

    Example:
        >>> from text_diffusers.space.parts.links import address_of
        >>> address_of("write", {"prompt": "She was", "seed": 3})
        '?tab=write&prompt=She+was&seed=3'
    """
    written: dict[str, Any] = {TAB: tab}
    for name, value in values.items():
        written[name] = [plain(part) for part in value] if isinstance(value, list) else plain(value)
    return "?" + urlencode(written, doseq=True)


def plain(value: Any) -> Any:
    """Whole numbers without a fraction, as sliders send them as floats, and nothing as an empty text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return "" if value is None else value


def settings_in(query: str, tabs: Mapping[str, LinkedTab]) -> tuple[str, dict[str, Any]] | None:
    """The tab of an address and all its settings; `None` if it names no tab.

    Args:
        query: what stands behind the "?".
        tabs: those that can be opened, by their names.

    Raises:
        Refusal: if there is no such tab or setting, one is given twice, or a value is beyond its limits.
    """
    # 1. What is given, by name
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
    except ValueError as error:
        raise Refusal("error.address.long", limit=MOST_PARAMETERS) from error
    given: dict[str, list[str]] = {}
    for name, written in pairs:
        if not name.startswith(NOT_OURS):
            given.setdefault(name, []).append(written)
    if TAB not in given:
        return None

    # 2. The tab, and names that it has
    tab = given.pop(TAB)[-1]
    if tab not in tabs:
        raise Refusal("error.address.tab", name=tab[:SHOWN_CHARACTERS])
    linked = tabs[tab]
    for name in given:
        if name not in linked.names:
            raise Refusal("error.address.field", name=name[:SHOWN_CHARACTERS])

    # 3. Values, checked as those of the browser
    hints = get_type_hints(linked.request)
    values = linked.first_values
    for name, written in given.items():
        values[name] = as_typed(name, hints[name], written)
    linked.check(linked.request(**values))
    return tab, values


def as_typed(name: str, hint: Any, written: list[str]) -> Any:
    """The values of a parameter as the browser would send them; what is no number stays a text, to be refused."""
    if get_args(hint):
        (inner,) = get_args(hint)
        # No box ticked, which an address writes as nothing
        if written == [""]:
            return []
        return [as_typed(name, inner, [part]) for part in written]

    if len(written) > 1:
        raise Refusal("error.address.twice", name=name)
    (value,) = written
    if hint is str:
        return value
    if WHOLE.fullmatch(value):
        return int(value)
    return float(value) if DECIMAL.fullmatch(value) else value
