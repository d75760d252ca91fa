"""What docker-compose.yml started: `make test-containers` runs this against real containers.

Its name keeps it out of the ordinary run of the tests, which needs no engine.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

ADDRESS = os.environ["FIBERWALK_ADDRESS"]
PROJECT = os.environ.get("COMPOSE_PROJECT_NAME")
IMAGE = os.environ["FIBERWALK_IMAGE"]
ROWS = [[6, 90, "Bonn"], [3, 45.5, "Köln"], [11, 800, "Aachen"]]


def docker(*arguments: str) -> str:
    run = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, f"docker {' '.join(arguments)}: {run.stderr}"
    return run.stdout.strip()


def container(service: str) -> str:
    filters = [f"label=com.docker.compose.service={service}"]
    if PROJECT:
        filters.append(f"label=com.docker.compose.project={PROJECT}")
    (found,) = docker("ps", "--quiet", *(f"--filter={f}" for f in filters)).split()
    return found


def inspect(service: str) -> dict[str, Any]:
    (content,) = json.loads(docker("inspect", container(service)))
    assert isinstance(content, dict)
    return content


def execute(service: str, *command: str) -> str:
    return docker("exec", container(service), *command)


def redis(*command: str) -> str:
    return execute("redis", "redis-cli", "--raw", *command)


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def healthy(service: str) -> bool:
    return bool(inspect(service)["State"]["Health"]["Status"] == "healthy")


def ready() -> bool:
    try:
        return httpx.get(f"{ADDRESS}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def predict(seed: int = 0, model: str = "prices", inputs: list[list[Any]] | None = None) -> dict[str, Any]:
    request = {"model": model, "inputs": inputs or ROWS, "seed": seed}
    answer = httpx.post(f"{ADDRESS}/predict", json=request, timeout=20)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert isinstance(content, dict)
    return content


def counted(sample: str) -> float:
    """The value of one line of /metrics; 0 where it is not there yet."""
    lines = httpx.get(f"{ADDRESS}/metrics", timeout=5).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample + " "))


@pytest.mark.parametrize("service", ["server", "redis"])
def test_health_checks_are_green(service: str) -> None:
    until(lambda: healthy(service))


def test_a_prediction_is_answered() -> None:
    assert ready()
    got = predict()
    assert (got["model"], got["version"]) == ("prices", 1)
    parts = np.array(got["epistemic_variance"]) + np.array(got["aleatoric_variance"])
    np.testing.assert_allclose(got["variance"], parts, rtol=1e-9)
    flowers = predict(model="flowers", inputs=[[4.0, 4.0]])
    assert flowers["label"][0] in {"setosa", "versicolor", "virginica"}


def test_decoded_weights_are_in_redis() -> None:
    predict(seed=101)
    keys = redis("KEYS", "fiberwalk:*").split()
    assert keys
    for key in keys:
        assert redis("GETRANGE", key, "0", "7") == "FIBRWALK"  # the header that a reader checks
        assert int(redis("STRLEN", key)) > 1000
        assert int(redis("TTL", key)) > 0
    assert counted("fiberwalk_redis_up") == 1


def test_redis_may_restart() -> None:
    before = predict(seed=7)
    docker("restart", "-t", "5", container("redis"))
    assert predict(seed=7) == before
    predict(seed=8)  # not decoded yet: answered whether or not Redis is back
    until(lambda: healthy("redis"))
    seeds = iter(range(1000, 10_000))

    def shared_again() -> bool:
        predict(seed=next(seeds))
        return redis("KEYS", "fiberwalk:*") != ""

    until(shared_again)
    assert predict(seed=7) == before


def test_the_server_may_restart() -> None:
    before = [predict(seed=s) for s in (21, 22)]
    docker("restart", "-t", "20", container("server"))
    until(ready)
    hits = counted('fiberwalk_cache_hits_total{tier="redis"}')
    assert [predict(seed=s) for s in (21, 22)] == before
    assert counted('fiberwalk_cache_hits_total{tier="redis"}') == hits + 2  # decoded by the one before
    until(lambda: healthy("server"))


def test_the_server_stops_in_time() -> None:
    """An orderly stop, not a kill after the grace period: the exit code says which."""
    docker("stop", "-t", "20", container_id := container("server"))
    try:
        (state,) = json.loads(docker("inspect", container_id))
        assert state["State"]["ExitCode"] in {0, 143}
    finally:
        docker("start", container_id)
        until(ready)


def test_the_server_is_nobody_and_can_write_nothing() -> None:
    assert execute("server", "id", "-u") == "10001"
    host = inspect("server")["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    code = (
        "import errno\n"
        "for path in ('/x', '/models/x', '/opt/fiberwalk/x', '/etc/passwd'):\n"
        "    try: open(path, 'a').close()\n"
        "    except OSError as e: print(errno.errorcode[e.errno])\n"
        "open('/tmp/x', 'w').close()\n"
    )
    assert set(execute("server", "python", "-c", code).split()) <= {"EROFS", "EACCES"}
    assert len(execute("server", "python", "-c", code).split()) == 4


def test_redis_is_nobody_and_keeps_nothing() -> None:
    assert execute("redis", "id", "-u") == "999"
    assert inspect("redis")["HostConfig"]["ReadonlyRootfs"] is True
    assert redis("CONFIG", "GET", "save").split() == ["save"]
    assert redis("CONFIG", "GET", "maxmemory-policy").split() == ["maxmemory-policy", "allkeys-lru"]


def test_the_server_image_has_no_torch() -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'pandas', 'matplotlib') if u.find_spec(n)])"
    assert execute("server", "python", "-c", code) == "[]"


def test_the_builder_image_has_torch() -> None:
    code = "import torch, onnx, builder, model_store; print(torch.ones(3).sum().item())"
    run = ("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--entrypoint", "python")
    assert docker(*run, f"{IMAGE}-builder", "-c", code) == "3.0"
