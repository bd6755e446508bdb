"""The ranges of what is asked of exits."""

from layersim.errors import UserError


def require_share(what: str, value: float, *, zero: bool = False, one: bool = False) -> None:
    """Raises UserError unless the value lies between 0 and 1, or is an end that is allowed."""
    if not (0 < value < 1 or (zero and value == 0) or (one and value == 1)):
        allowed = "above 0 and at most 1" if one else "between 0 and 1" + (", or 0" if zero else "")
        raise UserError(f"Expected {what} {allowed}, but got {value:g}.")
