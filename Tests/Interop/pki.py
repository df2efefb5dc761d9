"""Certificates, lists and keys, made by GnuTLS' tools, in directories as QEMU and libnbd want them."""

import pathlib
import subprocess

from peers import need, run

NAMES = {"authority": "Example CA", "server": "localhost"}


class PKI:
    """One authority and what it has signed. `directory(…)` puts files together for one party."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.certtool = need("certtool")
        self.count = 0
        self.key = self._key("ca")
        self.certificate = self._self_signed("ca", "Example CA")

    def _key(self, name):
        path = self.root / f"{name}-key.pem"
        run(self.certtool, "--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1", "--no-text", "--outfile", path)
        return path

    def _template(self, name, lines):
        path = self.root / f"{name}.info"
        path.write_text("".join(line + "\n" for line in lines))
        return path

    def _self_signed(self, name, common_name):
        template = self._template(name, [f"cn = {common_name}", "ca", "cert_signing_key", "crl_signing_key", "expiration_days = 100"])
        path = self.root / f"{name}-cert.pem"
        run(self.certtool, "--generate-self-signed", "--load-privkey", self.key, "--template", template, "--no-text", "--outfile", path)
        return path

    def sign(self, *lines, dates=("expiration_days = 90",), purpose=("tls_www_client", "signing_key")):
        """A certificate and its key. `lines`: of certtool's template."""
        self.count += 1
        name = f"c{self.count}"
        key = self._key(name)
        template = self._template(name, [*lines, f"serial = {1000 + self.count}", *dates, *purpose])
        path = self.root / f"{name}-cert.pem"
        run(self.certtool, "--generate-certificate", "--load-ca-certificate", self.certificate, "--load-ca-privkey", self.key,
            "--load-privkey", key, "--template", template, "--no-text", "--outfile", path)
        return path, key

    def sign_server(self, *names, **options):
        names = names or ("dns_name = localhost", "ip_address = 127.0.0.1")
        return self.sign("organization = Example", "cn = localhost", *names,
                         **{"purpose": ("tls_www_server", "signing_key"), **options})

    def sign_client(self, common_name="client", **options):
        return self.sign("organization = Example", f"cn = {common_name}", **options)

    def revoke(self, *certificates):
        """A list that takes back these certificates."""
        self.count += 1
        path = self.root / f"crl{self.count}.pem"
        template = self._template(f"crl{self.count}", ["crl_next_update = 100", f"crl_number = {self.count}"])
        words = []
        if certificates:
            joined = self.root / f"revoked{self.count}.pem"
            joined.write_text("".join(pathlib.Path(c).read_text() for c in certificates))
            words = ["--load-certificate", joined]
        run(self.certtool, "--generate-crl", "--load-ca-privkey", self.key, "--load-ca-certificate", self.certificate,
            *words, "--template", template, "--no-text", "--outfile", path)
        return path

    def directory(self, name, *, server=None, client=None, crl=None, authority=None):
        path = self.root / name
        path.mkdir(exist_ok=True)
        (path / "ca-cert.pem").write_bytes(pathlib.Path(authority or self.certificate).read_bytes())
        for side, pair in (("server", server), ("client", client)):
            if pair:
                (path / f"{side}-cert.pem").write_bytes(pathlib.Path(pair[0]).read_bytes())
                (path / f"{side}-key.pem").write_bytes(pathlib.Path(pair[1]).read_bytes())
        if crl:
            (path / "ca-crl.pem").write_bytes(pathlib.Path(crl).read_bytes())
        return path


def psk_directory(root, *users):
    """keys.psk by psktool."""
    root.mkdir(exist_ok=True)
    for user in users:
        subprocess.run([need("psktool"), "-u", user, "-p", root / "keys.psk"], check=True, capture_output=True)
    return root
