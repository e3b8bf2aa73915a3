"""The cluster files are what `ray up` accepts, install this project, and open nothing to the world."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ("cluster.yaml", "examples/cluster-on-premises.yaml")
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)

Config = dict[str, Any]


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> Config:
    return yaml.safe_load((ROOT / request.param).read_text())


def commands(config: Config) -> list[str]:
    return [command for key in COMMANDS for command in config.get(key, [])]


def test_ray_accepts_the_file_with_its_own_defaults_filled_in(config: Config) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    # Ray's defaults for AWS install a nightly Ray and open the dashboard: nothing of them may be left.
    assert all("ray-wheels" not in command and "0.0.0.0" not in command for command in commands(prepared))


def test_rays_schema_would_refuse_a_misspelt_key(config: Config) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="max_wokers"):
        validate_config(prepare_config(config | {"max_wokers": 3}))


def test_only_loopback_and_private_addresses_are_named(config: Config) -> None:
    text = yaml.safe_dump(config)
    addresses = set(re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text))
    assert all(address == "127.0.0.1" or address.startswith("10.") for address in addresses)
    assert "IpPermissions" not in text
    assert [command for command in config["head_start_ray_commands"] if "--dashboard-host=127.0.0.1" in command]


def test_every_ray_process_starts_with_token_authentication_and_the_token(config: Config) -> None:
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_numbers_of_workers_agree(config: Config) -> None:
    if config["provider"]["type"] == "local":
        assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
        return
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert types
    for node_type in types.values():
        assert 0 == node_type["min_workers"] < node_type["max_workers"] <= config["max_workers"]
    assert config["max_workers"] <= sum(node_type["max_workers"] for node_type in types.values())
    assert config["idle_timeout_minutes"] > 0


def test_the_set_up_installs_this_project_with_the_settings_of_uv(config: Config) -> None:
    assert any("cd ~/polyshot" in command and "uv sync" in command for command in config["setup_commands"])
    assert config["file_mounts"]["~/polyshot/pyproject.toml"] == "pyproject.toml"


def test_what_is_copied_to_the_nodes_is_enough_to_build_the_project(config: Config, tmp_path: Path) -> None:
    node = tmp_path / "polyshot"
    node.mkdir()
    for remote, local in config["file_mounts"].items():
        if not remote.startswith("~/polyshot/"):
            continue
        source, target = ROOT / local, node / remote.removeprefix("~/polyshot/")
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*config["rsync_exclude"]))
        else:
            shutil.copy(source, target)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(node)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list((tmp_path / "dist").glob("polyshot-*.whl"))) == 1
