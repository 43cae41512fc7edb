"""An http(s) address as it is asked for: an international host in IDNA, all other characters escaped, no password."""

import re
from base64 import b64encode
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

# What may stand in an address as it is; `%` because an address may be escaped already.
SAFE = "%:/?#[]@!$&'()*+,;=-._~"
HOST = re.compile(r"[A-Za-z0-9._-]+")
PASSWORD = re.compile(r"^(https?://[^/?#:@]*:)[^/?#]*@", re.IGNORECASE)
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


def without_credentials(address: str) -> tuple[str, str]:
    """An encoded address without `user:password@`, and that as an Authorization header, empty where there is none."""
    parts = urlsplit(address)
    credentials, _, place = parts.netloc.rpartition("@")
    if not credentials:
        return address, ""
    user, _, password = credentials.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return parts._replace(netloc=place).geturl(), f"Basic {b64encode(pair).decode('ascii')}"


def without_password(address: str) -> str:
    """An address for messages."""
    return PASSWORD.sub(r"\1***@", address)


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
