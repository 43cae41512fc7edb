"""An http(s) address as it is asked for: an international host in IDNA, all other characters escaped."""

import re
from urllib.parse import quote, unquote, urlsplit

# What may stand in an address as it is; `%` because an address may be escaped already.
SAFE = "%:/?#[]@!$&'()*+,;=-._~"
HOST = re.compile(r"[A-Za-z0-9._-]+")
# Python's codec is that of 2003, which makes other names of these than browsers do, so another site would answer.
AMBIGUOUS = "ßẞς\u200c\u200d"


def encoded_address(url: str) -> str:
    """`url` as browsers and `requests` send it. ValueError where its host cannot be encoded."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    host, colon, port = place.partition(":")
    # A redirect brings its host escaped. IPv6 literals are ASCII.
    if not (name := unquote(host)).isascii():
        url = parts._replace(netloc=f"{user}{at}{_encoded_host(name)}{colon}{port}").geturl()
    return quote(url, safe=SAFE)


def _encoded_host(name: str) -> str:
    if any(character in name for character in AMBIGUOUS):
        raise ValueError(f"the host {name!r} has more than one encoded name, write the one that begins with xn--")
    try:
        encoded = name.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"the host {name!r} is not an international name") from error
    if not HOST.fullmatch(encoded):
        raise ValueError(f"the host {name!r} is not an international name")
    return encoded
