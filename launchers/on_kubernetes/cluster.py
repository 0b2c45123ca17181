"""Jobs on a Kubernetes cluster with KubeRay: submit, watch, cancel. Errors in plain words."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.state import GONE, JobState
from launchers.on_kubernetes.objects import RayJob
from launchers.on_kubernetes.rayjob_rules import check_rayjob
from launchers.on_kubernetes.state import rayjob_state

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
_CONNECT_SECONDS, _READ_SECONDS = 5, 30
_WATCH_SECONDS = 60
"""A watch is renewed after this time, so that a dead connection is noticed."""
_RETRY_SECONDS = 1.0
_MANAGED = "app.kubernetes.io/managed-by=ifsq"


class ConnectionLost(Exception):
    """The API server cannot be reached now."""


class KubernetesCluster:
    """Access to one namespace.

    Args:
        api_client: configured client of the `kubernetes` package.
        namespace: where jobs live.
        patience_seconds: how long a watch outlives an API server that cannot be reached.
    """

    def __init__(self, api_client: Any, namespace: str, patience_seconds: float = 600) -> None:
        from kubernetes import client

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.namespace = namespace
        self._patience_seconds = patience_seconds
        self._objects = client.CustomObjectsApi(api_client)
        self.core = client.CoreV1Api(api_client)

    @classmethod
    def connect(cls, context: str | None = None, namespace: str | None = None) -> KubernetesCluster:
        """The cluster kubectl talks to, or the one this pod runs in.

        Args:
            context: of the kubeconfig; the current one if None.
            namespace: the context's if None.

        Raises:
            UserError: no kubeconfig, or no such context.
        """
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise UserError(
                "the Kubernetes client is not installed; pip install 'ifsq-train[k8s]'"
            ) from error
        settings, files = client.Configuration(), os.environ.get("KUBECONFIG")
        try:
            config.load_kube_config(files, context, client_configuration=settings)
            found = _context_namespace(config, files, context)
        except config.ConfigException as error:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                raise UserError(
                    f"no Kubernetes cluster is configured ({error});"
                    " set KUBECONFIG or make `kubectl get pods` work"
                ) from error
            found = None
        settings.retries = 0  # retries are this module's, which says what it waits for
        return cls(client.ApiClient(settings), namespace or found or "default")

    def submit(self, job: RayJob) -> JobState:
        """Check a job here and on the server, then create it.

        Raises:
            UserError: a rule is broken, the name is taken, access is denied, quota is used up.
        """
        check_rayjob(job)
        body = job.to_manifest()
        self.dry_run(job)
        created = self._call("create", job.metadata.name or "", lambda: self._create(body))
        return rayjob_state(created)

    def dry_run(self, job: RayJob) -> None:
        """Let the server go through everything but keeping the job.

        Raises:
            UserError: as `submit`.
        """
        check_rayjob(job)
        body = job.to_manifest()
        self._call("create", job.metadata.name or "", lambda: self._create(body, dry_run="All"))

    def _create(self, body: dict[str, Any], **options: Any) -> Any:
        return self._objects.create_namespaced_custom_object(
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            body,
            field_validation="Strict",
            _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            **options,
        )

    def get(self, name: str) -> dict[str, Any]:
        """The RayJob object.

        Raises:
            UserError: there is none, or access is denied.
        """
        return self._call("get", name, lambda: self._get(name))

    def _get(self, name: str) -> Any:
        return self._objects.get_namespaced_custom_object(
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            name,
            _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS),
        )

    def list_jobs(self) -> list[JobState]:
        """Jobs of this program in the namespace, newest first.

        Raises:
            UserError: access is denied.
        """
        found = self._call(
            "list",
            "",
            lambda: self._objects.list_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                label_selector=_MANAGED,
                _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            ),
        )
        states = [rayjob_state(job) for job in found["items"]]
        return sorted(states, key=lambda state: state.created, reverse=True)

    def cancel(self, name: str) -> None:
        """Delete a job of this program; what it wrote stays.

        Raises:
            UserError: there is none, it is not this program's, or access is denied.
        """
        job = self.get(name)
        if (job["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") != "ifsq":
            raise UserError(
                f"RayJob '{name}' was not submitted by `ifsq submit`; use `kubectl delete rayjob`"
            )
        self._call(
            "delete",
            name,
            lambda: self._objects.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                name,
                propagation_policy="Background",
                _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            ),
        )

    def watch(self, name: str, on_trouble: Callable[[str], None]) -> Iterator[JobState]:
        """States of a job until it has finished or is deleted: at every change, and at least once a
        minute, also the same again.

        An API server that cannot be reached is waited for.

        Args:
            name: of the job.
            on_trouble: told once when the server cannot be reached, and once when it is back.

        Raises:
            UserError: access is denied, or the server stays away too long.
        """
        lost_since: float | None = None
        while True:
            try:
                for state in self._watch_once(name):
                    if lost_since is not None:
                        on_trouble("the API server answers again")
                        lost_since = None
                    yield state
                    if state.finished:
                        return
            except ConnectionLost as error:
                if lost_since is None:
                    lost_since = time.monotonic()
                    on_trouble(f"the API server cannot be reached ({error}); the job goes on")
                if time.monotonic() - lost_since > self._patience_seconds:
                    raise UserError(
                        f"the API server was away for {self._patience_seconds:.0f} s; the job may"
                        f" still run, look later: ifsq status {name}"
                    ) from error
                time.sleep(_RETRY_SECONDS)

    def _watch_once(self, name: str) -> Iterator[JobState]:
        """One list and one watch from there; ends when the server ends the watch."""
        from kubernetes import watch

        found = self.reach(name, lambda: self._get(name))
        if found is None:
            yield JobState(name, GONE)
            return
        yield rayjob_state(found)
        stream = watch.Watch().stream(
            self._objects.list_namespaced_custom_object,
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            field_selector=f"metadata.name={name}",
            resource_version=found["metadata"]["resourceVersion"],
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=(_CONNECT_SECONDS, _WATCH_SECONDS + 15),
        )
        while True:
            event = self.reach(name, lambda: next(stream, None))
            if event is None:
                return
            state = rayjob_state(event["object"])
            if event["type"] == "DELETED":
                state = JobState(name, GONE)
            yield state

    def reach(self, name: str, call: Callable[[], Any]) -> Any:
        """The answer, or None where there is no such thing any more.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except ApiException as error:
            if error.status in (404, 410):
                return None
            if error.status in (401, 403):
                raise UserError(explain("get", name, self.namespace, error)) from error
            raise ConnectionLost(f"HTTP {error.status}") from error
        except (HTTPError, OSError) as error:
            raise ConnectionLost(type(error).__name__) from error

    def _call(self, verb: str, name: str, call: Callable[[], Any]) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except ApiException as error:
            raise UserError(explain(verb, name, self.namespace, error)) from error
        except (HTTPError, OSError) as error:
            host = self._objects.api_client.configuration.host
            raise UserError(
                f"the Kubernetes API server at {host} cannot be reached"
                f" ({type(error).__name__}); is the cluster up and the network there?"
            ) from error

    def warnings(self, name: str) -> list[str]:
        """What the cluster's events complain about, for a job that does not start; newest last."""
        found = self.read(
            name,
            lambda **options: self.core.list_namespaced_event(
                self.namespace, field_selector="type=Warning", **options
            ),
        )
        lines = [
            f"{event['involvedObject'].get('kind')} {about}: {event.get('message')}"
            for event in (found or {}).get("items", [])
            if (about := event["involvedObject"].get("name") or "").startswith(name)
        ]
        return list(dict.fromkeys(lines))

    def read(self, name: str, call: Callable[..., Any]) -> dict[str, Any] | None:
        """The answer to a core API call as plain JSON: objects of servers of any version.

        Args:
            name: what is asked for.
            call: takes the client's options.

        Returns:
            None where there is no such thing.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """
        timeout = (_CONNECT_SECONDS, _READ_SECONDS)
        response = self.reach(name, lambda: call(_preload_content=False, _request_timeout=timeout))
        return None if response is None else json.loads(response.data)


def _context_namespace(config: Any, files: str | None, context: str | None) -> str | None:
    contexts, active = config.list_kube_config_contexts(files)
    chosen = active if context is None else next(c for c in contexts if c["name"] == context)
    return (chosen or {}).get("context", {}).get("namespace")


def explain(verb: str, name: str, namespace: str, error: Any) -> str:
    """An API error in one line: what happened and what to do."""
    message = _server_message(error)
    if error.status == 401:
        return (
            "the API server does not know you (401); your login has expired or the kubeconfig"
            " is for another cluster: log in again"
        )
    if error.status == 403 and "quota" in message:
        return (
            f"the namespace's quota is used up: {message};"
            " ask for fewer nodes, wait for other jobs or submit to a queue (--queue)"
        )
    if error.status == 403:
        return (
            f"you may not {verb} RayJobs in namespace '{namespace}' (403): {message};"
            " ask for the role `ifsq-submitter` of the chart, or use another --namespace"
        )
    if error.status == 404 and verb in ("create", "list"):
        return (
            f"the cluster has no RayJobs in '{namespace}' (404): install the KubeRay operator,"
            " and check that the namespace exists"
        )
    if error.status == 404:
        return f"no job '{name}' in namespace '{namespace}'; `ifsq jobs` lists them"
    if error.status == 409 and verb == "create":
        return (
            f"a job '{name}' exists already in namespace '{namespace}'; see `ifsq status {name}`,"
            f" remove it with `ifsq cancel {name}`, or choose another --name"
        )
    if error.status in (400, 422):
        return f"the API server refuses the job: {message}"
    return f"the API server answered {error.status} {error.reason}: {message}"


def _server_message(error: Any) -> str:
    try:
        message = json.loads(error.body).get("message", "")
    except (TypeError, ValueError, AttributeError):
        message = str(error.body or "")
    return " ".join(str(message).split())[:600]
