"""What is private in a text, as the libraries kept for it find it: presidio for people, detect-secrets for keys.

Both work offline. Presidio's recognisers of patterns need no language model; names of persons and places would.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from curation.step import StepError

# Kinds that have a form of their own, most with a check digit. Those that are mere numbers (passports, bank accounts)
# would be found in every other sum.
PEOPLE = {
    "EMAIL_ADDRESS": "EmailRecognizer",
    "PHONE_NUMBER": "PhoneRecognizer",
    "CREDIT_CARD": "CreditCardRecognizer",
    "IBAN_CODE": "IbanRecognizer",
    "IP_ADDRESS": "IpRecognizer",
    "MAC_ADDRESS": "MacAddressRecognizer",
    "CRYPTO": "CryptoRecognizer",
    "US_SSN": "UsSsnRecognizer",
}
# Detectors of detect-secrets that go by what a string is assigned to, or by its entropy; the others know the form of
# somebody's keys.
GUESSES = {"KeywordDetector", "Base64HighEntropyString", "HexHighEntropyString"}
ELSEWHERE = {"PrivateKeyDetector", "IPPublicDetector"}  # finds a key's first line alone; presidio's are better
_KEY = "[A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = re.compile(rf"-----BEGIN {_KEY}.*?(?:-----END {_KEY}|\Z)", re.DOTALL)
_IS_CODE = re.compile(r"[^:.]*::?[^:.]*")  # a::b is an address of IPv6, but in code it is none
_TOKEN = re.compile(r"[\w.=+/-]*")
_UNLIKE = re.compile("[^A-Z0-9]+")
_AROUND = " \t\"'=:"
_LEAST = 8  # letters of a group that is a key
_MISSING = "{} is not installed; `pip install 'thresher[privacy]'`, then run the same command"


class Found(NamedTuple):
    kind: str
    text: str


def people(text: str, kinds: Iterable[str], least: float) -> Iterator[Found]:
    """What tells who somebody is, of these kinds, where presidio's score is at least this; no two overlap."""
    found = [
        (one.score, one.end - one.start, one.start, one.end, one.entity_type)
        for kind in kinds
        for one in _recogniser(kind).analyze(text, [kind], None)
        if one.score >= least and not (kind == "IP_ADDRESS" and _IS_CODE.fullmatch(text[one.start : one.end]))
    ]
    taken: list[tuple[int, int]] = []
    for _, _, start, end, kind in sorted(found, key=lambda f: (-f[0], -f[1], f[2])):
        if all(end <= a or b <= start for a, b in taken):
            taken.append((start, end))
            yield Found(kind, text[start:end])


def keys(text: str, guesses: bool) -> Iterator[Found]:
    """Keys, tokens and passwords; `guesses` are what only looks like one."""
    for whole in _PRIVATE_KEY.finditer(text):
        yield Found("PRIVATE_KEY", whole[0])
    for line in text.splitlines():
        for detector in _detectors(guesses):
            kind = _kind(detector)
            if type(detector).__name__ in GUESSES:
                said = detector.analyze_line(filename="", line=line, line_number=0)
                yield from (Found(kind, secret.secret_value) for secret in said if secret.secret_value)
            else:
                yield from (Found(kind, _whole(line, match)) for p in detector.denylist for match in p.finditer(line))


def all_kinds() -> list[str]:
    """Every kind that can be found, guesses too."""
    return sorted({*PEOPLE, "PRIVATE_KEY", *map(_kind, _detectors(guesses=True))})


def _kind(detector: Any) -> str:
    return _UNLIKE.sub("_", detector.secret_type.upper()).strip("_")


def _whole(line: str, match: re.Match[str]) -> str:
    """The key in what a pattern matched, to the ends of its words; the group of a pattern is often its prefix alone."""
    groups = [i for i in range(1, len(match.groups()) + 1) if match[i] and len(match[i]) >= _LEAST]
    start, end = match.span(max(groups, key=lambda i: len(match[i]))) if groups else match.span()
    if line[start:end].startswith("eyJ"):  # of a web token they match all but the signature
        end = _TOKEN.match(line, end).end()
    while start < end and line[start] in _AROUND:
        start += 1
    while end > start and line[end - 1] in _AROUND:
        end -= 1
    while start and (line[start - 1].isalnum() or line[start - 1] == "_"):
        start -= 1
    while end < len(line) and (line[end].isalnum() or line[end] == "_"):
        end += 1
    return line[start:end]


@cache
def _recogniser(kind: str) -> Any:
    try:
        import tldextract
        from presidio_analyzer import predefined_recognizers
    except ImportError:
        raise StepError(_MISSING.format("presidio-analyzer")) from None
    # else the first address that is looked at would fetch a list of domains
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    return getattr(predefined_recognizers, PEOPLE[kind])()


@cache
def _detectors(guesses: bool) -> tuple[Any, ...]:
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    except ImportError:
        raise StepError(_MISSING.format("detect-secrets")) from None
    left_out = ELSEWHERE if guesses else ELSEWHERE | GUESSES
    return tuple(kind() for kind in get_mapping_from_secret_type_to_class().values() if kind.__name__ not in left_out)
