#!/usr/bin/env bash
# Builds the images, brings docker-compose.yml up and tests what runs. Uses the machine's Docker engine; where there is
# none, COMPOSE_TEST names a program that brings one: it takes the project's folder, builds BUILD_ARGS, starts the
# services, runs TEST_CMD where it can reach them, and takes everything down.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
COMPOSE_TEST=${COMPOSE_TEST:-../shared/containers/compose-test}

FIBERWALK_MODELS=$(mktemp -d)
# The images of a test have names of their own, so that they replace nobody's.
export FIBERWALK_MODELS FIBERWALK_IMAGE=fiberwalk-test
# The test's models decode sooner than Redis answers, and would be left out of it.
export FIBERWALK_REDIS_WEIGHTS=always
started=
finish() {
  status=$?
  if [ -n "$started" ]; then
    [ "$status" = 0 ] || docker compose logs --tail 50 || :
    docker compose down --volumes --timeout 10 || :
  fi
  rm -rf "$FIBERWALK_MODELS"
  exit "$status"
}
trap finish EXIT

chmod 755 "$FIBERWALK_MODELS" # the server is another user
"$BIN/python" -m tests.containers.models "$FIBERWALK_MODELS"
tests="$BIN/python -m pytest tests/containers/check_compose.py"

if docker info > /dev/null 2>&1; then
  COMPOSE_PROJECT_NAME=fiberwalk-test-$$
  FIBERWALK_PUBLISH=$("$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  export COMPOSE_PROJECT_NAME FIBERWALK_PUBLISH
  started=1
  docker compose build server builder
  docker compose up --detach --wait --wait-timeout 120
  FIBERWALK_ADDRESS=http://127.0.0.1:$FIBERWALK_PUBLISH $tests
elif [ -x "$COMPOSE_TEST" ]; then
  # Wheels that pip finds on this machine are offered to the images' builds too.
  if [ -d "${PIP_FIND_LINKS:-}" ]; then export WHEELS=$PIP_FIND_LINKS; fi
  export FIBERWALK_BUILD_NETWORK=host FIBERWALK_ADDRESS=http://127.0.0.1:8000
  BUILD_ARGS="server builder" APP_URL=$FIBERWALK_ADDRESS/readyz TEST_CMD=$tests WAIT=120 "$COMPOSE_TEST" .
else
  echo "There is no Docker engine ('docker info' fails) and no $COMPOSE_TEST; start one, or name a program as COMPOSE_TEST." >&2
  exit 1
fi
