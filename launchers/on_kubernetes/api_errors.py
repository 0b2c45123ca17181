"""What the Kubernetes API answers, in plain words: what happened and what to do."""

from __future__ import annotations

import json
from typing import Any

from data_pipelines.errors import UserError


class NoCluster(UserError):
    """No cluster is configured, or none answers at the configured address."""


PASSING_REFUSALS = (401, 403)
"""What a restarting API server may answer for some seconds before it has read its roles."""


def explain(verb: str, name: str, namespace: str, error: Any) -> str:
    """An API error in one line.

    Args:
        verb: what was asked: create, get, list, delete, watch.
        name: of the job; empty for lists.
        namespace: that was asked.
        error: the client's ApiException.
    """
    message = server_message(error)
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
    if error.status in (400, 403) and "denied the request" in message:
        return f"the cluster refuses the job: {message}"
    if error.status == 403 and "being terminated" in message:
        return f"namespace '{namespace}' is being deleted; choose another --namespace"
    if error.status == 403:
        return (
            f"you may not {verb} RayJobs in namespace '{namespace}' (403): {message};"
            " ask for the role `ifsq-submitter` of the chart, or use another --namespace"
        )
    return _explain_others(verb, name, namespace, error, message)


def _explain_others(verb: str, name: str, namespace: str, error: Any, message: str) -> str:
    if error.status == 404 and "namespaces" in message:
        return f"there is no namespace '{namespace}'; create it or choose another --namespace"
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
            " (--suffix appends a number)"
        )
    if error.status in (400, 422):
        hint = ""
        if "unknown field" in message and "spec.rayClusterSpec.authOptions" in message:
            hint = "; its KubeRay CRDs are too old, upgrade them with the operator"
        return f"the API server refuses the job: {message}{hint}"
    return f"the API server answered {error.status} {error.reason}: {message}"


def no_answer(error: Exception) -> str:
    """Why there is no answer, in a few words.

    Args:
        error: of urllib3, which hides the cause of a failed attempt in its `reason`, or of the OS.
    """
    from urllib3 import exceptions

    cause = getattr(error, "reason", None)
    cause = cause if isinstance(cause, Exception) else error
    if isinstance(cause, exceptions.NameResolutionError):
        return "the name of its host is not known here"
    text = " ".join(str(cause).split())
    if "refused" in text:  # before timeouts: for older urllib3 a refusal is one of them
        return "connection refused"
    if isinstance(cause, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError):
        return "no answer in time"
    if isinstance(cause, exceptions.SSLError):
        return f"TLS: {text[:200]}"
    if isinstance(cause, exceptions.ProtocolError):
        return "the connection was cut"
    return type(cause).__name__


def server_message(error: Any) -> str:
    """The server's own words, on one line."""
    try:
        message = json.loads(error.body).get("message", "")
    except (TypeError, ValueError, AttributeError):
        message = str(error.body or "")
    return " ".join(str(message).split())[:600]
