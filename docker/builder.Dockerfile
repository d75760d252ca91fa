# The builder: fiberwalk with torch. It reads data from /data, works in /build and publishes into /models.
# Torch comes in the build that pip's index offers; for the smaller CPU build, pass that index as PIP_EXTRA_INDEX_URL.
FROM python:3.11-slim-bookworm AS dependencies
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv --without-pip /opt/fiberwalk
COPY docker/builder.lock /tmp/builder.lock
# With dependencies: the lock leaves out the CUDA libraries, whose versions torch fixes itself.
RUN pip --python /opt/fiberwalk/bin/python install --quiet --no-cache-dir -r /tmp/builder.lock

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY fiberwalk fiberwalk
COPY builder builder
COPY model_store model_store
COPY service service
RUN pip wheel --quiet --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# Any user may run it: compose gives it the caller's id, so that bundles belong to the caller.
RUN mkdir -p /models /data /build && chmod 1777 /models /build
COPY --from=dependencies /opt/fiberwalk /opt/fiberwalk
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/fiberwalk/bin/python install --quiet --no-cache-dir --no-deps /wheels/*.whl \
 && pip --python /opt/fiberwalk/bin/python check
ENV PATH=/opt/fiberwalk/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FIBERWALK_STORE=/models
USER 10001:10001
WORKDIR /build
ENTRYPOINT ["fiberwalk"]
CMD ["build", "--help"]
