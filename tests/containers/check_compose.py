"""What docker-compose.yml started: `make test-containers` runs this against real containers.

Its name keeps it out of the ordinary run of the tests, which needs no engine.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

ADDRESS = os.environ["FIBERWALK_ADDRESS"]
PROJECT = os.environ.get("COMPOSE_PROJECT_NAME")
IMAGE = os.environ["FIBERWALK_IMAGE"]
MODELS = Path(os.environ["FIBERWALK_MODELS"])
ROWS = [[6, 90, "Bonn"], [3, 45.5, "Köln"], [11, 800, "Aachen"]]
RECIPE = """
preset = "fast"
[data]
file = "lines.csv"
target = "y"
task = "regression"
[network]
hidden = [8]
activation = "tanh"
[map]
anchors = 2
steps = 300
learning_rate = 0.03
[fiber]
trajectories = 4
steps = 4
refinement = 5
[autoencoder]
dimension = 4
steps = 30
"""


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
    keys = redis("KEYS", "fiberwalk:*:predict:*").split()
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
        return redis("KEYS", "fiberwalk:*:predict:*") != ""

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


def compose_run(folder: Path, *command: str) -> str:
    """Runs a service of the project that is up, beside it, as `docker compose run` does from the project's folder."""
    labels = inspect("server")["Config"]["Labels"]
    # A build asks nothing of anyone; not every engine has a network for it.
    alone = folder / "alone.yml"
    alone.write_text("services: {builder: {network_mode: none}}\n")
    files = [*labels["com.docker.compose.project.config_files"].split(","), str(alone)]
    # Bundles belong to the caller; a root of the machine takes the id of a user whom the image does not know.
    owner, group = os.getuid() or 1000, os.getgid() or 1000
    if os.getuid() == 0:
        for path in [MODELS, *MODELS.rglob("*"), folder, *folder.rglob("*")]:
            os.chown(path, owner, group)
    environment = {"FIBERWALK_DATA": str(folder), "FIBERWALK_UID": str(owner), "FIBERWALK_GID": str(group)}
    project = labels["com.docker.compose.project"]
    place = labels["com.docker.compose.project.working_dir"]
    options = ["--project-name", project, "--project-directory", place, *(f"--file={f}" for f in files)]
    done = subprocess.run(
        ["docker", "compose", *options, "run", "--rm", "--no-deps", "--no-TTY", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_builder_builds_is_served(tmp_path: Path) -> None:
    """From a CSV file in the data folder to an answer of the server, which has been running all the while."""
    a = np.random.default_rng(0).uniform(-2, 2, 80)
    y = 50 + 10 * a + np.random.default_rng(1).normal(size=80)
    np.savetxt(tmp_path / "lines.csv", np.c_[a, y], delimiter=",", header="a,y", comments="")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    started = inspect("server")["State"]["StartedAt"]
    request = {"model": "lines", "inputs": [[-1.0], [0.0], [1.0]]}
    assert httpx.post(f"{ADDRESS}/predict", json=request, timeout=20).status_code == 404

    printed = compose_run(tmp_path, "builder", "build", "/data/recipe.toml", "--name", "lines", "--quiet")
    assert "Published in /models/lines/1" in printed
    until(lambda: httpx.post(f"{ADDRESS}/predict", json=request, timeout=20).status_code == 200)
    got = predict(model="lines", inputs=[[-1.0], [0.0], [1.0]])
    assert got["version"] == 1
    np.testing.assert_allclose(got["mean"], [40, 50, 60], atol=4)
    low, high = np.array(got["interval"]).T
    assert (low < got["mean"]).all() and (high > got["mean"]).all()
    assert predict(model="lines", inputs=[[-1.0], [0.0], [1.0]]) == got
    listed = {m["name"]: m for m in httpx.get(f"{ADDRESS}/models", timeout=20).json()["models"]}
    assert (listed["lines"]["version"], listed["lines"]["problem"]) == (1, None)
    assert inspect("server")["State"]["StartedAt"] == started
