"""URLs that carry credentials: found, refused and never shown.

A place is stored beside what was made from it, and shown in errors, logs and reports. Credentials
therefore come from the environment or from a Secret, never from a URL.
"""

from __future__ import annotations

import re

_AUTHORITY = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{1,20}:/{1,2})"
    r"(?:[^\s/?#@'\"]*@"  # user@, user:password@
    r"|[^\s/?#@'\"\[\]:]+:(?!\d{0,5}(?:[\s/?#,;'\")]|$))[^\s'\"]*)"  # a password with / # or ?
    r"(?P<rest>[^\s'\"]*)",
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"(?P<name>(?:[?&#;]|%3f|%26)(?:amp;)?(?:x-(?:amz|goog)-(?:signature|credential|security-token)"
    r"|signature|sig|(?:[a-z]{1,20}[_-])?token|(?:aws)?access_?key(?:_?id)?|(?:[a-z]{1,20}[_-])?secret(?:_key)?"
    r"|api[_-]?key|passw(?:or)?d|pwd|auth(?:orization)?|credentials?))=[^\s&#'\"]+",
    re.IGNORECASE,
)
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)
HOW_INSTEAD = (
    "a URL may not hold credentials (user:password@, a signature or a token): it is stored and"
    " shown; leave them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or --secret"
)


def has_credentials(text: str) -> bool:
    """Whether a text is or holds a URL with a user, a password, a signature or a token."""
    if not _URL.search(text):
        return False
    return without_credentials(text) != text


def without_credentials(text: str) -> str:
    """The text with all that may be a credential of a URL replaced by ``***``, for messages."""
    text = _AUTHORITY.sub(lambda found: f"{found['scheme']}***", text)
    return _QUERY.sub(lambda found: f"{found['name']}=***", text)


def refuse_credentials(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it is a URL with credentials; the message does not show them.
    """
    if has_credentials(text):
        raise ValueError(f"found {without_credentials(text)}; {HOW_INSTEAD}")
    return text
