"""nginx as a plain proxy with one worker and kept-alive connections: the reference from outside.

Used where an `nginx` is installed; otherwise the report says that it is not. Everything it writes
goes to the directory it is given.
"""

import grp
import os
import pwd
import shutil
from pathlib import Path
from typing import Final

CONFIGURATION: Final = """\
{user}daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{
    worker_connections 1024;
}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    upstream provider {{
        server 127.0.0.1:{upstream_port};
        keepalive 512;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


def program() -> str | None:
    """The nginx to use, if there is one."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("nginx", path=path)


def command(executable: str, directory: Path, port: int, upstream_port: int) -> list[str]:
    """Write the configuration and return the command line that serves it."""
    user = ""
    if os.getuid() == 0:
        # As root, nginx would make its worker a user who cannot pass our private directory.
        user = f"user {pwd.getpwuid(0).pw_name} {grp.getgrgid(0).gr_name};\n"
    directory.mkdir(mode=0o700)
    configuration = directory / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(user=user, directory=directory, port=port, upstream_port=upstream_port)
    )
    return [executable, "-p", str(directory), "-c", str(configuration)]
