"""Renders Envoy's configuration for the compose file, from the template that `headrace up` uses too.

`python deploy/compose/envoy.py [OUT]`; a test compares the result with the committed envoy.yaml.
"""

import sys
from pathlib import Path

from services.console.envoy import Door, Endpoint, render

HERE = Path(__file__).absolute().parent
HEADER = "# Rendered by deploy/compose/envoy.py from deploy/envoy/envoy.yaml.j2: change it there.\n"
ANYWHERE = "0.0.0.0"  # noqa: S104  (of the container; compose.yaml says what is published)

DOOR = Door(
    listen=Endpoint(ANYWHERE, 8400),
    admin=Endpoint(ANYWHERE, 9901),  # not published: Prometheus reads it inside
    admissions=(Endpoint("admission", 8401),),
    collector=Endpoint("jaeger", 4317),
    discovery="STRICT_DNS",
)

if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "envoy.yaml"
    out.write_text(HEADER + render(HERE.parent / "envoy/envoy.yaml.j2", DOOR))
