"""Addresses as they may be kept and shown: without what opens them."""

import re

_CHAINED = re.compile(r"::(?=[\w+.-]+://)")
_CREDENTIALS = re.compile(r"(?<=://)[^\s/<>]*@")
_QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]*")


def shown(address: str) -> str:
    """An address without user, password and query, `https://host/raw.jsonl`: a query may be a token or a signature."""
    return "::".join(map(_shown, _CHAINED.split(address)))


def without_secrets(text: str, address: str = "") -> str:
    """A text that names addresses, and this one perhaps, such as what a library says of one that it cannot open."""
    text = text.replace(address, shown(address)) if address else text
    return _QUERY.sub(r"\1", _CREDENTIALS.sub("", text))


def _shown(address: str) -> str:
    address = address.partition("?")[0]
    scheme, apart, rest = address.partition("://")
    if not apart:
        return address
    place, slash, path = rest.partition("/")
    said = f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
    return said.partition("#")[0] if scheme.startswith("http") else said  # elsewhere it may be part of a name
