# The server: no torch, no compiler, no root, and a root file system that may be read-only.
FROM python:3.11-slim-bookworm AS dependencies
RUN python -m venv --without-pip /opt/fiberwalk
COPY docker/server.lock /tmp/server.lock
RUN pip --python /opt/fiberwalk/bin/python install --quiet --no-cache-dir --no-deps -r /tmp/server.lock

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY fiberwalk fiberwalk
COPY builder builder
COPY model_store model_store
COPY service service
RUN pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 fiberwalk && useradd --uid 10001 --gid fiberwalk --no-create-home --home-dir /tmp fiberwalk \
 && mkdir /models
COPY --from=dependencies /opt/fiberwalk /opt/fiberwalk
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/fiberwalk/bin/python install --quiet --no-cache-dir --no-deps /wheels/*.whl \
 && pip --python /opt/fiberwalk/bin/python check
ENV PATH=/opt/fiberwalk/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FIBERWALK_STORE=/models \
    FIBERWALK_HOST=0.0.0.0 \
    FIBERWALK_PORT=8000
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# Healthy means ready: every model is loaded and warmed. An address instead of a port is what Kubernetes says of a service.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; p = os.environ['FIBERWALK_PORT']; r.urlopen('http://127.0.0.1:' + ('8000' if '://' in p else p) + '/readyz', timeout=4)"]
ENTRYPOINT ["fiberwalk"]
CMD ["serve"]
