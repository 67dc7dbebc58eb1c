"""What a machine can say of the container files: images, compose, Kubernetes, dashboard and alerts fit the service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from compose_spec.models import ComposeSpecification
from promql_parser import VectorSelector
from typer.main import get_command

from service import cli, jobs
from service.metrics import ApiMetrics, WorkerMetrics
from service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"
IMAGES = ("api", "worker-cpu", "worker-gpu")
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PARTS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
PINNED = re.compile(r".+:[^:@]*\d+\.\d+\.\d+[^:@]*(@sha256:[0-9a-f]{64})?")


# ---------------------------------------------------------------- images


def stages() -> dict[str, list[str]]:
    """Stage -> its instructions, each on one line, those of the stages that it is built from first."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[start[2]] = lines = list(found.get(start[1], []))
        elif found and re.match(r"[A-Z]+ ", line):
            lines.append(line)
    return found


def last(instructions: list[str], word: str) -> str:
    return [line.removeprefix(word).strip() for line in instructions if line.startswith(f"{word} ")][-1]


def test_dockerfile_is_clean() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKER / "Dockerfile"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_base_images_are_pinned_by_their_content() -> None:
    bases = re.findall(r"^ARG \w*BASE=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r".+:.+@sha256:[0-9a-f]{64}", base) for base in bases)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_without_rights_and_tells_its_health(image: str) -> None:
    instructions = stages()[image]
    assert last(instructions, "USER") == "10001:10001"
    assert "VOLUME /data" in instructions
    # Signals reach the service only where no shell stands between.
    entry, command = json.loads(last(instructions, "ENTRYPOINT")), json.loads(last(instructions, "CMD"))
    assert entry == ["python", "-m", "service"]
    assert command == [image.partition("-")[0]]
    health = json.loads(last(instructions, "HEALTHCHECK").partition("CMD ")[2])
    if image == "api":
        assert f"127.0.0.1:{DEFAULTS['port']}/livez" in health[-1]
        compile(health[-1], "healthcheck", "exec")
    else:
        assert health == [*entry, "healthcheck"]
    assert {command[0], "healthcheck"} <= set(get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_tools_to_build_with(image: str) -> None:
    assert not any("pip install" in line or "-dev" in line for line in stages()[image])


def test_the_context_holds_only_what_images_are_made_of() -> None:
    first, *rest = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in rest if line.startswith("!")}
    assert first == "*"
    assert all((ROOT / name).exists() for name in kept)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == kept


# ---------------------------------------------------------------- compose


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_compose_file_is_valid_and_every_target_exists() -> None:
    compose = ComposeSpecification.model_validate(COMPOSE)
    assert [compose.services[name].build.target for name in PARTS] == list(IMAGES)
    assert set(IMAGES) <= set(stages())
    assert (PARTS["worker"]["profiles"], PARTS["worker-gpu"]["profiles"]) == (["cpu"], ["gpu"])


def test_compose_opens_nothing_to_the_network() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert f"127.0.0.1:8000:{DEFAULTS['port']}" in ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_gives_no_container_rights(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "build" in service or PINNED.fullmatch(service["image"])


@pytest.mark.parametrize("name", PARTS)
def test_compose_lets_a_part_drain_and_keeps_what_it_writes(name: str) -> None:
    part = PARTS[name]
    assert seconds(part["stop_grace_period"]) > float(part["environment"]["SCENELIFT_DRAIN_SECONDS"]) + 10
    assert part["depends_on"] == {"redis": {"condition": "service_healthy"}}
    volumes = dict(volume.split(":") for volume in part["volumes"])
    assert set(volumes) <= set(COMPOSE["volumes"])
    assert volumes["results"] == "/data"
    assert volumes["models"] == f"/data/{Settings().models_dir.name}"
    assert part["tmpfs"] == ["/tmp"]
    assert part["init"] is True


# ---------------------------------------------------------------- Kubernetes


def kustomized(folder: Path) -> Iterator[dict[str, Any]]:
    """The documents that the folder's kustomization is made of."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in content["resources"] if name.endswith(".yaml")} == files
    for name in content["resources"]:
        path = (folder / name).resolve()
        if path.is_dir():
            yield from kustomized(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


CLUSTERS = {name: list(kustomized(KUBERNETES / name)) for name in ("cpu", "gpu")}
ADMIN = yaml.safe_load((KUBERNETES / "admin.yaml").read_text())
DOCUMENTS = {
    f"{document['kind']}/{document['metadata']['name']}": document
    for documents in (*CLUSTERS.values(), [ADMIN])
    for document in documents
}
PODS = {
    name: document["spec"]["template"]["spec"]
    for name, document in DOCUMENTS.items()
    if "template" in document.get("spec", {})
}
OURS = [name for name in PODS if name.startswith("Deployment/")]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if not name.startswith("ScaledObject")])
def test_a_manifest_is_valid(name: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[name], "1.34", strict=True)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_cluster_names_each_thing_once_and_only_what_is_there(cluster: str) -> None:
    documents = CLUSTERS[cluster]
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in documents if "template" in d.get("spec", {})]

    def chosen(selector: dict[str, str]) -> bool:
        return any(selector.items() <= pod.items() for pod in labels)

    for document in documents:
        spec = document.get("spec", {})
        for part in ("selector", "podSelector"):
            if part in spec:
                assert chosen(spec[part].get("matchLabels", spec[part])), document["metadata"]["name"]
    claims = {name for kind, name in names if kind == "PersistentVolumeClaim"}
    pods = [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]
    volumes = [volume for pod in pods for volume in pod.get("volumes", [])]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} == claims


@pytest.mark.parametrize("pod", [*PODS.values(), ADMIN["spec"]], ids=[*PODS, "Pod/admin"])
def test_a_pod_is_restricted(pod: dict[str, Any]) -> None:
    """As the Pod Security Standard of that name, which the namespace enforces, asks; and its root is read-only."""
    (container,) = pod["containers"]
    assert (
        pod["securityContext"].items() >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
    )
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert PINNED.fullmatch(container["image"])
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_probed(name: str) -> None:
    assert {"livenessProbe", "readinessProbe"} <= set(PODS[name]["containers"][0])


def test_what_is_done_by_hand_is_done_where_the_api_is() -> None:
    api = PODS["Deployment/api"]
    assert {name: ADMIN["spec"][name] for name in ("volumes", "securityContext")} == {
        name: api[name] for name in ("volumes", "securityContext")
    }
    assert [container["image"] for container in ADMIN["spec"]["containers"]] == ["scenelift-api:0.1.0"]


@pytest.mark.parametrize("name", OURS)
def test_a_pod_of_ours_fits_its_image_and_has_time_to_drain(name: str) -> None:
    pod = PODS[name]
    (container,) = pod["containers"]
    image = container["image"].partition(":")[0].removeprefix("scenelift-")
    instructions = stages()[image]
    user, _, group = last(instructions, "USER").partition(":")
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user), int(group), int(group))
    (port,) = container["ports"]
    assert port["containerPort"] == DEFAULTS["port" if image == "api" else "worker_metrics_port"]
    assert f"EXPOSE {port['containerPort']}" in instructions
    if image != "api":
        assert container["readinessProbe"]["exec"]["command"] == json.loads(
            last(instructions, "HEALTHCHECK").partition("CMD ")[2]
        )
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
    stop = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    drain = float(DOCUMENTS["ConfigMap/settings"]["data"]["SCENELIFT_DRAIN_SECONDS"])
    assert pod["terminationGracePeriodSeconds"] > stop + drain + 10


def test_only_the_gpu_worker_asks_for_a_gpu() -> None:
    asking = [name for name in PODS if "nvidia.com/gpu" in PODS[name]["containers"][0]["resources"]["limits"]]
    assert asking == ["Deployment/worker-gpu"]


def test_the_cluster_sets_what_the_service_knows() -> None:
    data = DOCUMENTS["ConfigMap/settings"]["data"]
    known = {f"SCENELIFT_{name.upper()}" for name in DEFAULTS}
    assert set(data) <= known
    settings = Settings(_env_file=None, **{name.removeprefix("SCENELIFT_").lower(): data[name] for name in data})
    assert not settings.require_worker, "a scaler to zero needs jobs to be taken while there is no worker"


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.startswith("ScaledObject/")])
def test_a_scaler_watches_our_queue_and_may_go_to_zero(name: str) -> None:
    """Its fields are of KEDA's own schema; what KEDA hands on to Kubernetes is checked by Kubernetes' schema."""
    document = DOCUMENTS[name]
    spec = document["spec"]
    assert document["apiVersion"] == "keda.sh/v1alpha1"
    assert set(spec) == {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"),
        *("advanced", "triggers"),
    }
    assert all(type(spec[count]) is int for count in spec if count.endswith(("Count", "Interval", "Period")))
    target = DOCUMENTS[f"Deployment/{spec['scaleTargetRef']['name']}"]
    assert "replicas" not in target["spec"], "else applying the manifests again would undo what the scaler did"
    assert 0 == spec["minReplicaCount"] < spec["maxReplicaCount"]
    kubernetes_validate.validate(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": target["metadata"]["name"]},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target["metadata"]["name"]},
                "maxReplicas": spec["maxReplicaCount"],
                **spec["advanced"]["horizontalPodAutoscalerConfig"],
            },
        },
        "1.34",
        strict=True,
    )
    namespace = DOCUMENTS["Namespace/scenelift"]["metadata"]["name"]
    address = f"{DOCUMENTS['Service/redis']['metadata']['name']}.{namespace}.svc:6379"
    common = {"address": address, "stream": jobs.STREAM}
    waiting, there = (trigger["metadata"] for trigger in spec["triggers"])
    assert {trigger["type"] for trigger in spec["triggers"]} == {"redis-streams"}
    assert waiting == common | {
        "consumerGroup": jobs.GROUP,
        "lagCount": waiting["lagCount"],
        "activationLagCount": "0",
    }
    assert there == common | {"streamLength": there["streamLength"]}
    assert int(waiting["lagCount"]) > 0 < int(there["streamLength"])


def test_the_queue_keeps_its_jobs() -> None:
    compose = COMPOSE["services"]["redis"]
    pod = PODS["StatefulSet/redis"]["containers"][0]
    assert compose["image"] == pod["image"]
    assert compose["command"] == pod["args"]
    assert {"--appendonly yes", "--maxmemory-policy noeviction"} <= set(pod["args"])


# ---------------------------------------------------------------- Prometheus and Grafana


def exported() -> dict[str, set[str]]:
    """Every series that the service exports -> its labels."""
    series: dict[str, set[str]] = {}
    for metrics in (ApiMetrics(), WorkerMetrics()):
        for metric in vars(metrics).values():
            for family in metric.describe() if hasattr(metric, "_labelnames") else ():
                labels = {*metric._labelnames, "instance", "job"}
                endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
                for ending in endings:
                    series[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return series


SERIES = exported()
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DOCKER / "grafana" / "scenelift.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def selectors(expression: str) -> Iterator[VectorSelector]:
    """Of a PromQL expression. Raises ValueError where it is none."""
    found: list[VectorSelector] = []
    promql_parser.walk(
        promql_parser.parse(expression),
        lambda node: found.append(node) if isinstance(node, VectorSelector) else None,
    )
    yield from found


def check(expression: str) -> None:
    """Every series and label of the expression is one that the service exports."""
    found = list(selectors(expression))
    assert found
    for selector in found:
        assert {matcher.name for matcher in selector.matchers.matchers} <= SERIES[selector.name], expression
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    assert grouped <= set.union(*(SERIES[selector.name] for selector in found)), expression


def test_the_check_of_expressions_refuses_what_does_not_exist() -> None:
    with pytest.raises(KeyError):
        check("rate(scenelift_nothing_total[5m])")
    with pytest.raises(AssertionError):
        check('scenelift_workers{status="ready"}')
    with pytest.raises(ValueError):
        check("sum(scenelift_workers")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported(rule: dict[str, Any]) -> None:
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_asks_for_what_is_exported(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        check(target["expr"].replace("$__rate_interval", "1m"))
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert re.search(rf"\b{label}\b", target["expr"]) or "by (" not in target["expr"]


def test_every_metric_is_watched() -> None:
    def family(name: str) -> str:
        return re.sub(r"_(bucket|sum|count|total)$", "", name)

    shown = [target["expr"].replace("$__rate_interval", "1m") for panel in PANELS for target in panel["targets"]]
    watched = {
        selector.name for expression in shown + [rule["expr"] for rule in ALERTS] for selector in selectors(expression)
    }
    assert {family(name) for name in watched} == {family(name) for name in SERIES}


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert all(one != two for one, two in pairwise(sorted(cells)))
    assert max(x for x, _ in cells) < 24


def test_prometheus_asks_the_containers_where_they_listen() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    targets = {
        name: lookup["port"]
        for job in config["scrape_configs"]
        for lookup in job["dns_sd_configs"]
        for name in lookup["names"]
    }
    metrics_port = DEFAULTS["worker_metrics_port"]
    assert targets == {"api": DEFAULTS["port"], "worker": metrics_port, "worker-gpu": metrics_port}
    assert set(targets) == set(PARTS)
    for pod in OURS:
        annotations = DOCUMENTS[pod]["spec"]["template"]["metadata"]["annotations"]
        (port,) = PODS[pod]["containers"][0]["ports"]
        assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(port["containerPort"])}
