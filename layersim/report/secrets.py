"""What looks like a password or a token is not written down."""

import re

MASK = "<masked>"
_KEY = (
    r"(?<!\w)(?:token|\w{0,40}(?:(?:auth|access|api|bearer|hf|hub)_?token|api_?key|(?:access|secret|private)_?key|"
    r"passw(?:or)?d|passphrase|secret))"
)
_WORD = r"""[^\s,}\]"']+"""
_VALUE = (
    r"""(?:"[^"\n]+"|'[^'\n]+'|(?!null\b|true\b|false\b|[|>{\[&*])"""
    rf"{_WORD}(?:[ \t]+(?!--){_WORD}(?<!:))*)"
)
"""A value in quotes, or all words of one."""
_NAMED = re.compile(rf"""({_KEY}["']?[ \t]*[:=][ \t]*){_VALUE}""", re.IGNORECASE)
_TYPED = re.compile(rf"(--(?:[\w-]{{1,80}}\.){{0,9}}{_KEY} +){_VALUE}", re.IGNORECASE)
_SHAPED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|"
    r"xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
)
"""Tokens of Hugging Face, GitHub, OpenAI, AWS and Slack, JSON web tokens, and passwords in addresses."""


def masked(text: str) -> str:
    """A configuration, or a command, with the values of options such as `api_key`, and what has a token's form, masked.

    `eos_token` and its like are no secrets, and stay.
    """
    for named in (_NAMED, _TYPED):
        text = named.sub(rf"\1{MASK}", text)
    return _SHAPED.sub(MASK, text)
