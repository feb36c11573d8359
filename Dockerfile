# syntax=docker/dockerfile:1
# The gateway as an image: one process, no root, everything pinned by requirements.lock.

FROM node:20-slim AS dashboard
WORKDIR /src
COPY frontend/package.json frontend/package-lock.json frontend/.npmrc ./
RUN npm ci --no-audit --no-fund
COPY frontend ./
RUN npm run build

FROM python:3.11-slim AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/spendgate \
 && awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' requirements.lock > /tmp/uv.lock \
 && pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/uv.lock \
 && uv pip sync --python /opt/spendgate/bin/python --require-hashes requirements.lock
COPY pyproject.toml LICENSE README.md ./
COPY alembic ./alembic
COPY --from=dashboard /src/dist ./frontend/dist
COPY app ./app
RUN uv pip install --python /opt/spendgate/bin/python --no-deps --no-build-isolation . \
 && uv pip uninstall --python /opt/spendgate/bin/python uv hatchling editables

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --home-dir /var/lib/spendgate --create-home spendgate
COPY --from=build /opt/spendgate /opt/spendgate
USER spendgate
ENV PATH=/opt/spendgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SPENDGATE_HOST=0.0.0.0 \
    SPENDGATE_PORT=8000 \
    SPENDGATE_DATA_DIR=/var/lib/spendgate
# Used for the embedded database, if none is configured, and for the outage spool.
VOLUME /var/lib/spendgate
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['SPENDGATE_PORT']}/readyz\", timeout=2)"]
# The server drains its calls on SIGTERM; give it the time (docker stop --time 60).
STOPSIGNAL SIGTERM
ENTRYPOINT ["spendgate"]
CMD ["serve"]
