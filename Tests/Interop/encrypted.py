"""TLS for tests: command lines that speak it, and connections by hand, upgraded with Python's OpenSSL."""

import ssl

import wire

X509, X509_ANY, PSK = "x509", "x509 without client certificates", "psk"
KINDS = [X509, X509_ANY, PSK]


def server_options(pki, kind, *extra, directory=None):
    directory = directory or (pki.psk if kind == PSK else pki.server)
    if kind == PSK:
        text = f"tls-creds-psk,id=tls0,dir={directory},endpoint=server"
    else:
        text = f"tls-creds-x509,id=tls0,dir={directory},endpoint=server,verify-peer={'off' if kind == X509_ANY else 'on'}"
    return ["--object", text, "--tls-creds", "tls0", *extra]


def client_uri(pki, uri, kind, directory=None):
    """For nbdinfo and nbdcopy."""
    glue = "&" if "?" in uri else "?"
    if kind == PSK:
        return uri.replace("://", "://alice@", 1) + f"{glue}tls-psk-file={directory or pki.psk}/keys.psk"
    return uri + f"{glue}tls-certificates={directory or (pki.client if kind == X509 else pki.bare)}"


def qemu_options(pki, server, kind, directory=None, export=""):
    """For qemu-img and qemu-io: the object, and the image."""
    if kind == PSK:
        text = f"tls-creds-psk,id=tls0,dir={directory or pki.psk},endpoint=client,username=alice"
    else:
        text = f"tls-creds-x509,id=tls0,dir={directory or (pki.client if kind == X509 else pki.bare)},endpoint=client"
    if server.sockets:
        place = f"server.type=unix,server.path={server.sockets[0]},tls-hostname=localhost"
    else:
        place = f"server.type=inet,server.host=localhost,server.port={server.port}"
    return ["--object", text, "--image-opts", f"driver=nbd,{place},export={export},tls-creds=tls0"]


def client_context(directory, verify=True):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(directory / "ca-cert.pem")
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    if (directory / "client-cert.pem").exists():
        context.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    return context


def start_tls(uri, timeout=20):
    """A link in clear whose STARTTLS was acknowledged."""
    link = wire.Wire(uri, timeout)
    link.greet()
    assert link.ask(wire.STARTTLS)[-1][0] == wire.ACK
    return link


def upgrade(uri, context, timeout=20):
    link = start_tls(uri, timeout)
    link.link = context.wrap_socket(link.link, server_hostname="localhost", suppress_ragged_eofs=False)
    return link


def tls_wire(uri, directory, version=None, timeout=20):
    """A link whose greeting and TLS handshake are over."""
    context = client_context(directory)
    if version:
        context.minimum_version = context.maximum_version = version
    return upgrade(uri, context, timeout)


def server_serial(uri, directory):
    """The serial number of the certificate that the server shows now."""
    with tls_wire(uri, directory) as link:
        return int(link.link.getpeercert()["serialNumber"], 16)
