"""Which cluster, which namespace: kubeconfig, or the pod this process runs in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired
from urllib.parse import urlencode

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from data_pipelines.documents import checked
from data_pipelines.errors import UserError
from data_pipelines.storage.local import below_home
from data_pipelines.yaml_documents import read_yaml
from launchers.on_kubernetes.api_errors import NoCluster

_MAX_KUBECONFIG_BYTES = 16 << 20
_Values = dict[str, Any] | None


class _Named(TypedDict):
    cluster: NotRequired[str | None]
    user: NotRequired[str | None]
    namespace: NotRequired[str | None]


class _Context(TypedDict):
    name: str
    context: _Named | None


class _Cluster(TypedDict):
    name: str
    cluster: _Values


class _User(TypedDict):
    name: str
    user: NotRequired[_Values]


_Kubeconfig = TypedDict(
    "_Kubeconfig",
    {
        "kind": NotRequired[str],
        "current-context": NotRequired[str | None],
        "contexts": NotRequired[list[_Context] | None],
        "clusters": NotRequired[list[_Cluster] | None],
        "users": NotRequired[list[_User] | None],
    },
)
_KUBECONFIG: TypeAdapter[_Kubeconfig] = TypeAdapter(_Kubeconfig)
"""What is relied on; clusters, users and contexts have further keys."""


def connect_client(context: str | None) -> tuple[Any, str | None]:
    """A client of the cluster kubectl talks to, or of the one this pod runs in.

    Args:
        context: of the kubeconfig; the current one if None.

    Returns:
        The client, and the context's namespace if it names one.

    Raises:
        UserError: no client library, no kubeconfig, or no such context.
    """
    try:
        import urllib3
        from kubernetes import client, config
    except ImportError as error:
        raise UserError(
            "the Kubernetes client is not installed; pip install 'ifsq-train[k8s]'"
        ) from error
    settings, files = client.Configuration(), os.environ.get("KUBECONFIG")
    check_kubeconfig(files)
    _check_context(config, files, context)
    try:
        with _readable(files), _login_errors():
            config.load_kube_config(files, context, client_configuration=settings)
            found = _context_namespace(config, files, context)
    except config.ConfigException as error:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            if any(path.exists() for path in _kubeconfigs(files)):
                raise _unusable(files, error) from error
            raise NoCluster(
                f"no Kubernetes cluster is configured ({error});"
                " set KUBECONFIG or make `kubectl get pods` work"
            ) from error
        found = None
    if not settings.verify_ssl:
        # The kubeconfig says so; kubectl does not warn either, and this would at every request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    settings.retries = 0  # retries are this package's, which says what it waits for
    with _readable(files):
        return client.ApiClient(settings), found


def check_kubeconfig(files: str | None) -> None:
    """Refuse a kubeconfig that is none before the client reads it.

    Args:
        files: paths as KUBECONFIG gives them; kubectl's own place if None. Those that do not exist
            are passed over, as kubectl does.

    Raises:
        UserError: not YAML, or a part of it is not what kubectl writes.
    """
    for path in _kubeconfigs(files):
        if path.exists():
            values = read_yaml(path, max_bytes=_MAX_KUBECONFIG_BYTES)
            checked(_KUBECONFIG, {} if values is None else values, f"kubeconfig {path}")


def _kubeconfigs(files: str | None) -> list[Path]:
    names = (files or str(Path.home() / ".kube" / "config")).split(os.pathsep)
    return [below_home(name) for name in names if name]


@contextmanager
def _login_errors() -> Iterator[None]:
    """What the client only logs, before it goes on as nobody: a login program that failed.

    Raises:
        UserError: it failed.
    """
    said: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.module != "kube_config":
            return True
        said.append(" ".join(record.getMessage().split())[:300])
        return False

    root = logging.getLogger()
    root.addFilter(take)
    try:
        yield
    finally:
        root.removeFilter(take)
    if said:
        raise UserError(
            f"the login program of the kubeconfig's user failed: {said[-1]}; log in again, or make"
            " `kubectl get pods` work"
        )


@contextmanager
def _readable(files: str | None) -> Iterator[None]:
    """What the client raises for a kubeconfig that it cannot use, as the user's error."""
    from kubernetes import config

    try:
        yield
    except (config.ConfigException, UserError):
        raise
    except Exception as error:  # what logs in for a cloud raises errors of its own
        raise _unusable(files, error) from error


def _unusable(files: str | None, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"kubeconfig {files or '~/.kube/config'} cannot be used ({type(error).__name__}:"
        f" {reason}); make `kubectl get pods` work"
    )


def _check_context(config: Any, files: str | None, context: str | None) -> None:
    """A name that is not in the kubeconfig is the user's mistake, not a missing cluster."""
    if context is None:
        return
    try:
        with _readable(files):
            contexts, _ = config.list_kube_config_contexts(files)
    except config.ConfigException as error:
        raise UserError(
            f"--context {context} cannot be looked up: {error}; set KUBECONFIG"
        ) from error
    names = sorted(found["name"] for found in contexts)
    if context not in names:
        raise UserError(
            f"the kubeconfig has no context '{context}'; it has: {', '.join(names) or 'none'}"
        )


def _context_namespace(config: Any, files: str | None, context: str | None) -> str | None:
    contexts, active = config.list_kube_config_contexts(files)
    chosen = active if context is None else next(c for c in contexts if c["name"] == context)
    return (chosen or {}).get("context", {}).get("namespace")


def get_path(api_client: Any, path: str, query: dict[str, str]) -> bytes:
    """The answer to a GET of any API path, with the client's own login and certificates.

    The client's call for this has changed between its versions; what it stands on has not.

    Raises:
        ApiException: the server answers with an error.
    """
    from kubernetes.client import ApiException
    from urllib3 import Timeout

    settings = api_client.configuration
    headers = {"Accept": "application/json"}
    headers |= {auth["key"]: auth["value"] for auth in settings.auth_settings().values()}
    response = api_client.rest_client.pool_manager.request(
        "GET",
        f"{settings.host}{path}" + (f"?{urlencode(query)}" if query else ""),
        headers=headers,
        retries=False,
        timeout=Timeout(connect=5, read=30),
    )
    if response.status >= 400:
        raise ApiException(http_resp=response)
    return response.data
