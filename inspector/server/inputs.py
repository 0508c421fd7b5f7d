"""What clients send is looked at before any handler sees it, and what goes wrong is told to them in one sentence.

The page sends what its components allow; a program sends what it likes: text for a number, a list for a text, nothing
at all. :class:`StrictBlocks` checks every input of every event by its component, so that no handler has to.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.context import LocalContext

from inspector.bounds import Bounds
from inspector.files import open_cache
from inspector.server.admission import admit_files
from inspector.server.toasts import refuse
from model import InputError
from model.values import is_number, is_whole, name_value

logger = logging.getLogger(__name__)

FAILED = "The server failed at this and wrote down why; try again, and tell its owner if that doesn't help."
UNUSABLE = "What was sent can't be read by this event; compare it with the API's description, or reload the page."
MAX_NAMED = 12
"""So many choices are named in a sentence."""


class StrictBlocks(gr.Blocks):
    """``gr.Blocks`` whose events are called with inputs of the right kind or not at all, and whose failures reach a
    client as a sentence: of what is no :class:`InputError` the server's log gets the whole and the client nothing."""

    def __init__(self, bounds: Bounds, **options: Any) -> None:
        self.bounds = bounds
        super().__init__(**options)

    async def process_api(
        self, block_fn: Any, inputs: list[Any], state: Any = None, *args: Any, **options: Any
    ) -> dict[str, Any]:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            if function.fn is None:
                raise InputError(f"“{function.api_name}” happens in the browser alone; a program can't call it.")
            # The later steps of a stream bring nothing new.
            if options.get("iterator") is None:
                if not options.get("explicit_call"):
                    admit_inputs(inputs)
                inputs = self._check(function, inputs, state)
            return await super().process_api(block_fn, inputs, state, *args, **options)
        except InputError as error:
            raise refuse(error) from error
        except gr.Error as error:
            error.print_exception = False  # it is told to the one whom it concerns
            raise
        except Exception as error:
            logger.exception("The event “%s” failed.", function.api_name)
            raise refuse(FAILED) from error
        finally:
            # Gradio leaves this set when a stream fails, and then whatever the same task makes of components is empty.
            LocalContext.in_event_listener.set(False)

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> Any:
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except OSError:
            raise
        except gr.Error as error:  # a component's own words
            raise InputError(f"{str(error.message).rstrip('.')}.") from error
        except Exception as error:  # pydantic's, gradio's and those of wrong types within files and galleries
            logger.info("The event “%s” was sent what it can't read: %s", block_fn.api_name, error)
            raise InputError(UNUSABLE) from error

    def _check(self, function: Any, inputs: Sequence[Any], state: Any) -> list[Any]:
        if len(inputs) < len(function.inputs):
            raise InputError(
                f"“{function.api_name}” takes {len(function.inputs)} values and {len(inputs)} came; compare it with "
                "the API's description."
            )
        checked = list(inputs)
        for place, block in enumerate(function.inputs):
            if not block.stateful:
                # A session has choices of its own; whether nothing may be chosen is the same for all.
                own = state[block._id] if state is not None and block._id in state else block
                name = _name(function.fn, place, block)
                checked[place] = check_value(own, inputs[place], name, self.bounds.field_text, block.value is None)
        return checked


def admit_inputs(inputs: Sequence[Any]) -> None:
    """InputError for a file that was not uploaded here; those that were are in use and live on."""
    for path in admit_files(inputs, open_cache()):
        with contextlib.suppress(OSError):  # it has just gone, and whoever opens it says so
            # Files are deleted by how long ago anything about them changed, and this one is in use. What is in it has
            # not changed, so that time stays.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def read_event(event: gr.EventData, field: str, kind: type) -> Any:
    """What a widget sent along with its event: ``kind`` is ``int``, ``str`` or ``list``. gr.Error, as a sentence, if a
    program sent something else or nothing."""
    data = event._data
    value = data.get(field) if isinstance(data, Mapping) else None
    fits = is_number(value) and is_whole(value) if kind is int else isinstance(value, kind)
    if not fits:
        came = f"has {name_value(value)} for it" if isinstance(data, Mapping) and field in data else "lacks it"
        raise refuse(f"This event needs event_data with “{field}”, {_KINDS[kind]}; what came {came}.")
    return value


def check_value(block: Any, value: Any, name: str, longest: int, may_be_none: bool) -> Any:
    """The value as the handler may have it: nothing at all is an empty text, no tick and no choice. InputError, which
    says ``name``, if the component ``block`` could never have sent it. ``longest``: characters of a text."""
    for kind, check in _CHECKS:
        if isinstance(block, kind):
            return check(block, value, name, longest, may_be_none)
    return value


def check_text(value: Any, name: str, longest: int) -> str:
    """InputError for what is no text, too long or no Unicode."""
    if not isinstance(value, str):
        raise InputError(f"“{name}” is {name_value(value)}; it takes text.")
    if len(value) > longest:
        raise InputError(f"“{name}” has {len(value):,} characters; at most {longest:,} are taken, shorten it.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"“{name}” holds half a character (a lone surrogate), which is no text; remove it.")
    return value


_KINDS = {int: "a whole number", str: "a text", list: "a list", bool: "true or false", float: "a number"}
_Check = Callable[[Any, Any, str, int, bool], Any]


def _name(function: Callable[..., Any], place: int, block: Any) -> str:
    label = None if isinstance(block, Api) else getattr(block, "label", None)
    if label:
        return str(label)
    names = list(inspect.signature(function).parameters)
    return names[place] if place < len(names) else f"value {place + 1}"


def _check_textbox(_: Any, value: Any, name: str, longest: int, __: bool) -> str:
    return "" if value is None else check_text(value, name, longest)


def _check_tick(_: Any, value: Any, name: str, __: int, ___: bool) -> bool:
    if not isinstance(value, bool | None):
        raise InputError(f"“{name}” is {name_value(value)}; it takes true or false.")
    return bool(value)


def _check_number(block: Any, value: Any, name: str, _: int, __: bool) -> Any:
    low, high = block.minimum, block.maximum
    wanted = f"a number from {low:g} to {high:g}" if low is not None and high is not None else "a number"
    if value is None and not isinstance(block, gr.Slider):
        return None  # an emptied field
    if not is_number(value) or (low is not None and value < low) or (high is not None and value > high):
        raise InputError(f"“{name}” is {'empty' if value is None else name_value(value)}; it takes {wanted}.")
    return value


def _check_choice(block: Any, value: Any, name: str, longest: int, may_be_none: bool) -> Any:
    if getattr(block, "multiselect", False):
        return _check_choices(block, value, name, longest, may_be_none)
    if value is None and may_be_none:
        return None
    if getattr(block, "allow_custom_value", False):
        return _check_textbox(block, value, name, longest, may_be_none)
    if not _is_choice(block, value):
        raise InputError(f"“{name}” is {name_value(value)}; {_tell_choices(block)}.")
    return value


def _check_choices(block: Any, value: Any, name: str, _: int, __: bool) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"“{name}” is {name_value(value)}; it takes a list, {_tell_choices(block)}.")
    for one in value[: len(block.choices) + 1]:
        if not _is_choice(block, one):
            raise InputError(f"“{name}” has {name_value(one)}; {_tell_choices(block)}.")
    if len(value) > len(block.choices):
        raise InputError(f"“{name}” has {len(value):,} entries for {len(block.choices)} choices; give each once.")
    return value


def _is_choice(block: Any, value: Any) -> bool:
    # Of the same kind, too: true is not 1.
    return any(type(value) is type(choice) and value == choice for _, choice in block.choices)


def _tell_choices(block: Any) -> str:
    names = [str(choice) for _, choice in block.choices]
    if not names:
        return "there is nothing to choose here yet"
    more = f" or {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"choose of {', '.join(names[:MAX_NAMED])}{more}"


def _check_described(block: Any, value: Any, name: str, longest: int, _: bool) -> Any:
    """By the JSON schema that gradio made of a function's type hints."""
    return _check_schema(block.api_info(), value, name, longest)


def _check_schema(schema: Mapping[str, Any], value: Any, name: str, longest: int) -> Any:
    kind = schema.get("type")
    if kind == "string":
        return check_text(value, name, longest)
    fits = {
        "boolean": isinstance(value, bool),
        "integer": is_number(value) and is_whole(value),
        "number": is_number(value),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }.get(str(kind), True)
    if not fits:
        raise InputError(f"“{name}” is {name_value(value)}; it takes {_SCHEMA_KINDS[str(kind)]}.")
    if kind == "array":
        for number, one in enumerate(value, start=1):
            _check_schema(schema.get("items", {}), one, f"{name} {number}", longest)
    return value


_SCHEMA_KINDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "an object",
}
_CHECKS: tuple[tuple[type | tuple[type, ...], _Check], ...] = (
    (gr.Textbox, _check_textbox),
    (gr.Checkbox, _check_tick),
    ((gr.Number, gr.Slider), _check_number),
    (gr.CheckboxGroup, _check_choices),
    ((gr.Radio, gr.Dropdown), _check_choice),
    (Api, _check_described),
)
