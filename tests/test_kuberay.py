"""The Kubernetes manifests are what KubeRay's API reference and Kubernetes describe, and keep secrets and ports closed.

The definitions of KubeRay's resources are in no package that can be installed. So the fields are written down here, as
far as the manifests may use them: an unknown or a misspelt one fails, a wrong type as well.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from polyshot.study import Study

EXAMPLES = Path(__file__).parents[1] / "examples"


def section(*required: str, **fields: Any) -> dict[str, Any]:
    """A JSON schema of an object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}}
RESOURCES = section(requests=QUANTITIES, limits=QUANTITIES)
METADATA = section("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, labels=TEXTS)
CONTAINER = section(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    resources=RESOURCES,
    env=array(section("name", name=TEXT, value=TEXT)),
    envFrom=array(section(secretRef=section("name", name=TEXT))),
    securityContext=section(allowPrivilegeEscalation={"const": False}),
    volumeMounts=array(section("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
POD = section(
    "containers",
    containers=array(CONTAINER),
    securityContext=section(runAsNonRoot={"const": True}, runAsUser={"type": "integer", "minimum": 1}, fsGroup=COUNT),
    volumes=array(
        section(
            "name",
            name=TEXT,
            persistentVolumeClaim=section("claimName", claimName=TEXT),
            configMap=section("name", name=TEXT),
        )
    ),
)
TEMPLATE = section("spec", metadata=METADATA, spec=POD)
CLUSTER = section(  # RayClusterSpec
    "headGroupSpec",
    "rayVersion",
    "authOptions",
    rayVersion=TEXT,
    authOptions=section("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=section(
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    ),
    headGroupSpec=section(
        "template",
        "rayStartParams",
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=array(
        section(
            "groupName",
            "template",
            "rayStartParams",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
JOB = section(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=METADATA,
    spec=section(  # RayJobSpec
        "entrypoint",
        "rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        runtimeEnvYAML=TEXT,
        rayClusterSpec=CLUSTER,
    ),
)
CLAIM = section(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "v1"},
    kind={"const": "PersistentVolumeClaim"},
    metadata=METADATA,
    spec=section(
        "accessModes",
        "resources",
        accessModes=array({"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]}),
        storageClassName=TEXT,
        resources=section("requests", requests=QUANTITIES),
    ),
)


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "kuberay-job.yaml").read_text())


@pytest.fixture
def claim() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "kuberay-storage.yaml").read_text())


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_manifests_have_the_fields_of_their_kinds_and_no_others(job, claim):
    jsonschema.validate(job, JOB)
    jsonschema.validate(claim, CLAIM)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(job, JOB)


def test_what_is_named_is_there(job, claim):
    for pod in pods(job):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
        claims = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
        assert {"claimName": claim["metadata"]["name"]} in claims
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_cluster_ends_with_its_job_and_opens_nothing(job):
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] <= 86400
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert spec["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(group["minReplicas"] == 0 for group in spec["rayClusterSpec"]["workerGroupSpecs"])


def test_no_secret_stands_in_the_manifest(job):
    assert "password" not in yaml.safe_dump(job).lower()
    assert all("env" not in container for pod in pods(job) for container in pod["containers"])


def test_the_command_is_one_of_ours_on_the_mounted_study(job):
    program, verb, study = job["spec"]["entrypoint"].split()
    assert (program, verb) == ("polyshot", "search")
    mounts = [mount["mountPath"] for mount in pods(job)[0]["containers"][0]["volumeMounts"]]
    assert str(Path(study).parent) in mounts
    assert "/shared" in mounts
    assert Study.model_fields["storage"].default == "polyshot-runs"  # relative: the header tells to name /shared
