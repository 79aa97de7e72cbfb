"""mTLS of the mesh's streams, from the same folder as that of its channels."""

import ssl
from pathlib import Path


def server_context(tls_dir: Path) -> ssl.SSLContext:
    """Of a server that takes only clients of its own CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _filled(context, tls_dir)


def client_context(tls_dir: Path) -> ssl.SSLContext:
    """Of a client that believes only servers of its own CA, under their names."""
    return _filled(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls_dir)


def _filled(context: ssl.SSLContext, tls_dir: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(tls_dir / "ca.crt")
    context.load_cert_chain(tls_dir / "tls.crt", tls_dir / "tls.key")
    return context
