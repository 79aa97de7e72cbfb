"""Renders Envoy's configuration for a mesh on many machines: clients by TLS, with or without a certificate of their
own, and mutual TLS to admission.

`python deploy/envoy/production.py ADMISSION COLLECTOR [OUT]`, each host:port. ADMISSION's host is a name that resolves
to every admission process. The template says what lies in the two folders with certificates.
"""

import sys
from pathlib import Path

from services.console.envoy import Door, Endpoint, render

TEMPLATE = Path(__file__).absolute().parent / "envoy.yaml.j2"
ANYWHERE = "0.0.0.0"  # noqa: S104  (of its container, or behind a load balancer)
LOOPBACK = "127.0.0.1"


def door(admission: str, collector: str, tls: str = "/etc/envoy/tls", mesh_tls: str = "/etc/envoy/mesh") -> Door:
    """The variables; `tls` and `mesh_tls` are the folders with the certificates."""
    return Door(
        listen=Endpoint(ANYWHERE, 8443),
        admin=Endpoint(LOOPBACK, 9901),
        admissions=(Endpoint.parse(admission),),
        collector=Endpoint.parse(collector),
        discovery="STRICT_DNS",
        trace_percent=1.0,
        tls_dir=tls,
        mesh_tls_dir=mesh_tls,
    )


if __name__ == "__main__":
    rendered = render(TEMPLATE, door(sys.argv[1], sys.argv[2]))
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text(rendered)
    else:
        sys.stdout.write(rendered)
