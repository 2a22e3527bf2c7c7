"""Who may ask: TLS certificates and bearer tokens, for REST and gRPC alike."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
from pathlib import Path
from typing import Any

import grpc

from karpa_tf.errors import UserError


class Tokens:
    """The accepted bearer tokens, of which only hashes are known.

    Args:
        hashes: the SHA-256 of each, in hex; without any nobody is accepted. None: no token is asked for.
    """

    def __init__(self, hashes: list[bytes] | None) -> None:
        self._hashes = hashes

    def __bool__(self) -> bool:
        """Whether anybody is accepted."""
        return self._hashes is None or bool(self._hashes)

    def become(self, other: Tokens) -> None:
        """Takes over another file's tokens; from now on those that are not among them are refused."""
        self._hashes = other._hashes

    def accept(self, authorization: str | None) -> bool:
        """Whether a request may pass.

        Args:
            authorization: the value of its Authorization header, or None.

        Returns:
            True if it names an accepted token, or none is asked for. All hashes are compared, each in
            constant time.
        """
        if self._hashes is None:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "basic":  # how browsers send a password
            scheme, token = "bearer", _password(token)
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest().encode()
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(given, known)
        return found and scheme.lower() == "bearer"


def _password(credentials: str) -> str:
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except ValueError:
        return ""
    return decoded.decode("utf-8", "surrogateescape").partition(":")[2]


def read_tokens(path: str) -> Tokens:
    """Reads a token file: a line each, the token's SHA-256 in hex, and after a space whose it is.

    A file without a line accepts nobody. Without a path no token is asked for.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not path:
        return Tokens(None)
    text = _read(path, "token_file").decode("utf-8", "replace")
    hashes = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            # Not quoted: it may be a token itself.
            raise UserError(
                f"--token_file: line {number} of {path} does not begin with a SHA-256 of 64 hex digits; "
                "printf %s TOKEN | sha256sum prints one."
            )
        hashes.append(words[0].lower().encode())
    return Tokens(hashes)


def rest_tls(certificate: str, key: str) -> ssl.SSLContext | None:
    """Returns what aiohttp needs for TLS, or None without a certificate.

    Raises:
        UserError: the files cannot be read or do not go together.
    """
    if not certificate:
        return None
    _read(certificate, "tls_certificate_file")
    _read(key, "tls_key_file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password would be asked for at the terminal; there is none.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"--tls_certificate_file {certificate} and --tls_key_file {key} cannot be used: {reason}."
        ) from None
    return context


def renew_rest_tls(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Gives connections that come from now on the certificate that is in the files now.

    Raises:
        UserError: the files cannot be read or do not go together; nothing has changed then.
    """
    rest_tls(certificate, key)
    context.load_cert_chain(certificate, key, password=lambda: b"")


def grpc_tls(certificate: str, key: str) -> grpc.ServerCredentials | None:
    """Returns what gRPC needs for TLS, or None without a certificate; it looks for a new one by itself."""
    if not certificate:
        return None
    known = _pair(certificate, key)

    def fetch() -> Any:
        nonlocal known
        try:
            rest_tls(certificate, key)  # the two go together
            pair = _pair(certificate, key)
        except UserError:
            return None
        if pair == known:
            return None
        known = pair
        return grpc.ssl_server_certificate_configuration([pair])

    return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([known]), fetch)


def _pair(certificate: str, key: str) -> tuple[bytes, bytes]:
    return _read(key, "tls_key_file"), _read(certificate, "tls_certificate_file")


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--{flag}: {path} cannot be read: {error.strerror}.") from None
