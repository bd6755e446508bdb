"""What holds for the options of every data module."""

from abc import ABCMeta
from inspect import Parameter, formatannotation, signature
from typing import Any

from layersim.errors import UserError


class CheckedOptions(ABCMeta):
    """Refuses null, with a UserError, for an option whose type has no None in it: the parser lets it pass.

    A metaclass, because it sees what any subclass was given before any `__init__` does, and the parser, which asks the
    `__init__`s for their options, does not see it.
    """

    def __call__(cls, *positional: Any, **options: Any) -> Any:
        declared: dict[str, Parameter] = {}
        for kind in reversed(cls.__mro__):
            declared |= signature(kind.__init__).parameters  # type: ignore[misc]
        for option in (name for name, value in options.items() if value is None and name in declared):
            expected, default = formatannotation(declared[option].annotation), declared[option].default
            if not any(word in expected for word in ("None", "Optional", "Any", "_empty")):
                remedy = "" if default is Parameter.empty else f", or leave it out for {default}"
                raise UserError(f"{option} is null, but must be {expected}: change --data.{option}{remedy}")
        return super().__call__(*positional, **options)
