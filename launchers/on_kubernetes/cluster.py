"""Jobs on a Kubernetes cluster with KubeRay: submit, look, cancel. Errors in plain words."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost, Refused
from launchers.jobs.state import JobState
from launchers.on_kubernetes.api_errors import (
    PASSING_REFUSALS,
    NoCluster,
    explain,
    no_answer,
    server_message,
)
from launchers.on_kubernetes.connection import connect_client, get_path
from launchers.on_kubernetes.objects import RayJob
from launchers.on_kubernetes.rayjob_rules import check_rayjob
from launchers.on_kubernetes.state import rayjob_state

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
CONNECT_SECONDS, READ_SECONDS = 5, 30
TIMEOUT = (CONNECT_SECONDS, READ_SECONDS)
_MANAGED = "app.kubernetes.io/managed-by=ifsq"


class KubernetesCluster:
    """Access to one namespace.

    Args:
        api_client: configured client of the `kubernetes` package.
        namespace: where jobs live.
        patience_seconds: how long a watch outlives an API server that cannot be reached.
        context: of the kubeconfig, for commands that pass it on; None is the current one.
    """

    def __init__(
        self,
        api_client: Any,
        namespace: str,
        patience_seconds: float = 600,
        context: str | None = None,
    ) -> None:
        from kubernetes import client

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self.namespace, self.context = namespace, context
        self.patience_seconds = patience_seconds
        self.objects = client.CustomObjectsApi(api_client)
        self.core = client.CoreV1Api(api_client)
        self._granted: set[str] = set()
        """What has been read before: a refusal of it is a server that has just started."""

    @classmethod
    def connect(cls, context: str | None = None, namespace: str | None = None) -> KubernetesCluster:
        """The cluster kubectl talks to, or the one this pod runs in.

        Args:
            context: of the kubeconfig; the current one if None.
            namespace: the context's if None.

        Raises:
            UserError: no kubeconfig, or no such context.
        """
        client, found = connect_client(context)
        return cls(client, namespace or found or "default", context=context)

    def submit(self, job: RayJob) -> JobState:
        """Check a job here and on the server, then create it.

        Raises:
            UserError: a rule is broken, the name is taken, access is denied, quota is used up.
        """
        return rayjob_state(self.create(job))

    def create(self, job: RayJob) -> dict[str, Any]:
        """As `submit`; returns the RayJob object."""
        self.dry_run(job)
        body = job.to_manifest()
        return self._call("create", job.metadata.name or "", lambda: self._create(body))

    def create_config_map(self, body: dict[str, Any]) -> None:
        """Create a ConfigMap.

        Raises:
            UserError: access is denied, or the server refuses it.
        """
        name = body["metadata"]["name"]
        self._call(
            "create ConfigMaps and",
            name,
            lambda: self.core.create_namespaced_config_map(
                self.namespace,
                body,  # pyright: ignore[reportArgumentType]
                _request_timeout=TIMEOUT,
            ),
        )

    def dry_run(self, job: RayJob) -> None:
        """Let the server go through everything but keeping the job.

        Raises:
            UserError: as `submit`.
        """
        from launchers.on_kubernetes.versions import check_kept

        check_rayjob(job)
        body = job.to_manifest()
        kept = self._call(
            "create", job.metadata.name or "", lambda: self._create(body, dry_run="All")
        )
        check_kept(body, kept)

    def _create(self, body: dict[str, Any], **options: Any) -> Any:
        return self.objects.create_namespaced_custom_object(
            *self.place, body, field_validation="Strict", _request_timeout=TIMEOUT, **options
        )

    def create_pod(self, body: dict[str, Any]) -> None:
        """Create a pod.

        Raises:
            UserError: access is denied, or the server refuses it.
        """
        self._call(
            "create pods and",
            body["metadata"]["name"],
            lambda: self.core.create_namespaced_pod(
                self.namespace,
                body,  # pyright: ignore[reportArgumentType]
                _request_timeout=TIMEOUT,
            ),
        )

    @property
    def place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def get(self, name: str) -> dict[str, Any]:
        """The RayJob object.

        Raises:
            UserError: there is none, or access is denied.
        """
        return self._call("get", name, lambda: self.fetch(name))

    def fetch(self, name: str) -> Any:
        """The RayJob object, with the client's own errors."""
        return self.objects.get_namespaced_custom_object(
            *self.place, name, _request_timeout=TIMEOUT
        )

    def list_raw(self) -> list[dict[str, Any]]:
        """RayJob objects of this program in the namespace, newest first.

        Raises:
            UserError: access is denied.
        """
        found = self._call(
            "list",
            "",
            lambda: self.objects.list_namespaced_custom_object(
                *self.place, label_selector=_MANAGED, _request_timeout=TIMEOUT
            ),
        )
        # The API server answers in the order of names.
        created = lambda job: job["metadata"].get("creationTimestamp") or ""  # noqa: E731
        return sorted(found["items"], key=created, reverse=True)

    def list_jobs(self) -> list[JobState]:
        """Jobs of this program in the namespace, newest first.

        Raises:
            UserError: access is denied.
        """
        return [rayjob_state(job) for job in self.list_raw()]

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
            lambda: self.objects.delete_namespaced_custom_object(
                *self.place, name, propagation_policy="Background", _request_timeout=TIMEOUT
            ),
        )

    def watch(self, name: str, on_trouble: Callable[[str], None]) -> Iterator[JobState]:
        """States of a job until it has finished; see `watching.watch_job`."""
        from launchers.on_kubernetes.watching import watch_job

        return watch_job(self, name, on_trouble)

    def reach(self, name: str, call: Callable[[], Any], what: str = "rayjobs") -> Any:
        """The answer, or None where there is no such thing any more.

        A refusal (401, 403) of something that was read before is taken for a server that has just
        been started and has not read its roles: it counts as a lost connection.

        Args:
            name: of the job or pod.
            call: asks.
            what: kind of thing asked for.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = call()
        except ApiException as error:
            if error.status in (404, 410):
                return None
            if error.status in PASSING_REFUSALS and what in self._granted:
                raise Refused(explain("get", name, self.namespace, error)) from error
            if error.status in PASSING_REFUSALS:
                raise UserError(explain("get", name, self.namespace, error)) from error
            raise ConnectionLost(f"HTTP {error.status} {server_message(error)}".strip()) from error
        except (HTTPError, OSError, ValueError) as error:
            # ValueError: a line of a watch that was cut is no JSON.
            raise ConnectionLost(no_answer(error)) from error
        self._granted.add(what)
        return answer

    def _call(self, verb: str, name: str, call: Callable[[], Any]) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except ApiException as error:
            raise UserError(explain(verb, name, self.namespace, error)) from error
        except (HTTPError, OSError) as error:
            raise NoCluster(
                f"the Kubernetes API server at {self.host} cannot be reached"
                f" ({no_answer(error)}); is the cluster up, is the network there, and is it the"
                " right --context?"
            ) from error

    @property
    def host(self) -> str:
        """Address of the API server."""
        return self.objects.api_client.configuration.host

    def read(
        self, name: str, call: Callable[..., Any], what: str = "pods"
    ) -> dict[str, Any] | None:
        """The answer to an API call as plain JSON: objects of servers of any version.

        Args:
            name: what is asked for.
            call: takes the client's options.
            what: kind of thing asked for.

        Returns:
            None where there is no such thing.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """
        response = self.reach(
            name, lambda: call(_preload_content=False, _request_timeout=TIMEOUT), what
        )
        return None if response is None else json.loads(response.data)

    def read_path(self, path: str, what: str, **query: str) -> dict[str, Any] | None:
        """The answer to a GET of any API path as plain JSON; None where there is none.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """

        answer = self.reach(path, lambda: get_path(self.core.api_client, path, query), what)
        return None if answer is None else json.loads(answer)

    def list_pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods of the namespace with these labels.

        Raises:
            ConnectionLost: no answer.
            UserError: access is denied.
        """
        found = self.read(
            selector,
            lambda **options: self.core.list_namespaced_pod(
                self.namespace, label_selector=selector, **options
            ),
        )
        return (found or {}).get("items", [])

    def may(self, verb: str, resource: str, subresource: str) -> bool | None:
        """Whether this user may do that in the namespace; None where the server does not say."""
        from kubernetes.client import ApiException, AuthorizationV1Api
        from urllib3.exceptions import HTTPError

        wanted = {"verb": verb, "resource": resource, "subresource": subresource}
        body: Any = {"spec": {"resourceAttributes": {**wanted, "namespace": self.namespace}}}
        reviews = AuthorizationV1Api(self.core.api_client)
        try:
            found: Any = reviews.create_self_subject_access_review(
                body, _preload_content=False, _request_timeout=TIMEOUT
            )
            return bool(json.loads(found.data)["status"]["allowed"])
        except (ApiException, HTTPError, OSError, ValueError, KeyError, TypeError):
            return None
