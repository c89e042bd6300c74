"""What is said to a wrong argument: its name, what was given, what is expected, the next best name.

Used by every public entry point, so that a wrong use is answered alike everywhere and no name of an
internal class gets into a message.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_CLOSE = 0.55
_SHOWN = 3


def near(name: str, choices: Iterable[str]) -> str:
    """Return what to add to an error: the choices that a wrong name comes near to.

    Names that contain the wrong one come first (``layer1`` for ``layer1.0.relu``), then those that
    are spelt alike.

    Example:
        >>> near("dead_treshold", ["layers", "dead_threshold"])
        ' Did you mean `dead_threshold`?'
        >>> near("colour", ["layers", "exclude"])
        ''
    """
    known = list(choices)
    lower = name.lower()
    containing = [choice for choice in known if lower and lower in choice.lower()]
    alike = get_close_matches(name, known, n=_SHOWN, cutoff=_CLOSE)
    found = list(dict.fromkeys([*containing[:_SHOWN], *alike]))[:_SHOWN]
    return f" Did you mean {' or '.join(f'`{choice}`' for choice in found)}?" if found else ""


def given(value: Any) -> str:
    """Say what an argument was: a short value with its type where that is what is wrong with it.

    Example:
        >>> given("0.9"), given(7), given([1, 2])
        ("the string '0.9'", '7', 'the list [1, 2]')
    """
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    kind = {"str": "string"}.get(type(value).__name__, type(value).__name__)
    if isinstance(value, (str, list, tuple, set, frozenset, dict)) and len(repr(value)) <= 60:
        return f"the {kind} {value!r}"
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def check_number(
    name: str,
    value: Any,
    expected: str,
    fits: Callable[[float], bool],
    *,
    whole: bool = False,
) -> None:
    """Raise unless an argument is a number that fits.

    Args:
        name: The argument.
        value: What was given.
        expected: What is expected, as in ``a number in (0, 1]``.
        fits: Whether a number is one of those.
        whole: Whether it must be an int.

    Raises:
        TypeError: If it is no number.
        ValueError: If it does not fit; NaN never does.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        way_out = _number_in(value, fits, whole)
        raise TypeError(f"Expected `{name}` to be {expected}, but got {given(value)}.{way_out}")
    if not fits(float(value)):
        raise ValueError(f"Expected `{name}` to be {expected}, but got {value}.")


def _number_in(value: Any, fits: Callable[[float], bool], whole: bool) -> str:
    """Say how to write the number that a string or a float holds, if it holds one."""
    try:
        number = float(value) if isinstance(value, str) else value
        number = int(number) if whole or float(number).is_integer() else number
        usable = not isinstance(value, bool) and number == float(value) and fits(number)
    except (TypeError, ValueError, OverflowError):
        return ""
    return f" Write `{number}`." if usable else ""


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless an argument is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected `{name}` to be True or False, but got {given(value)}.")


def check_choice(name: str, value: Any, choices: Iterable[str], also: str = "") -> None:
    """Raise ValueError unless an argument is one of some strings.

    Args:
        name: The argument.
        value: What was given.
        choices: What there is to choose from.
        also: What else is expected, for the message.
    """
    known = list(choices)
    if value in known:
        return
    listed = ", ".join(map(repr, known)) + also
    hint = near(value, known).replace("`", "'") if isinstance(value, str) else ""
    raise ValueError(f"Expected `{name}` to be one of {listed}, but got {value!r}.{hint}")


def explains_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function or a constructor explain a call that does not fit its signature.

    Python's own message has the name under which a method was defined, which may be an internal
    class, and no advice. The signature stays visible to ``inspect``, and so to LightningCLI.
    """
    signature = inspect.signature(function)
    is_constructor = function.__name__ == "__init__"

    @functools.wraps(function)
    def explained(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            name = type(args[0]).__name__ if is_constructor else function.__name__
            raise TypeError(_misfit(name, signature, is_constructor, args, kwargs, error)) from None
        return function(*args, **kwargs)

    return explained


def _misfit(
    name: str,
    signature: inspect.Signature,
    is_constructor: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: TypeError,
) -> str:
    known = [each for each in signature.parameters if not (is_constructor and each == "self")]
    unknown = [each for each in kwargs if each not in known]
    if unknown:
        hint = near(unknown[0], known) or f" It takes {', '.join(f'`{each}`' for each in known)}."
        return f"{name} has no argument `{unknown[0]}`.{hint}"
    positional = [
        each
        for each in known
        if signature.parameters[each].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    handed = args[1:] if is_constructor else args
    if len(handed) > len(positional):
        options = [each for each in known if each not in positional]
        way_out = f" Write the others by name: {', '.join(options)}." if options else ""
        return (
            f"{name} takes at most {len(positional)} arguments by position "
            f"({', '.join(positional)}), but got {len(handed)}.{way_out}"
        )
    return f"{name}: {error}."
