"""Writes the server's description of its API to a file, without a server or a database."""

import json
import os
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as data_dir:
    os.environ.update(
        SPENDGATE_DATA_DIR=data_dir,
        SPENDGATE_SECRET_KEY="a secret that nothing is ever sealed with",
        SPENDGATE_DATABASE_URL="postgresql://nobody@localhost/nothing",
    )
    from app.main import from_environment

    Path(sys.argv[1]).write_text(json.dumps(from_environment().apis.openapi_schema.to_schema()))
