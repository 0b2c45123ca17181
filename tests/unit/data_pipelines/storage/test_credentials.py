"""URLs with credentials are found, refused and never shown."""

from __future__ import annotations

import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage.credentials import has_credentials, without_credentials
from data_pipelines.storage.open import open_storage

WITH = [
    "https://me:hunter2@example.com/data",
    "s3://AKIAEXAMPLE:hunter2@bucket/prefix",
    "s3://AKIAEXAMPLE:slash/hunter2@bucket/prefix",
    "https://hunter2@example.com/data",
    "HTTPS://me:hunter2@EXAMPLE.com",
    "https://example.com/a?X-Amz-Algorithm=x&X-Amz-Signature=hunter2",
    "https://example.com/a?x-amz-security-token=hunter2&b=1",
    "https://example.com/a?X-Goog-Signature=hunter2",
    "https://example.com/a?sv=1&sig=hunter2",
    "https://example.com/a?token=hunter2",
    "https://example.com/a#access_token=hunter2",
    "s3://bucket/a?AWSAccessKeyId=hunter2",
    "https://example.com/?api_key=hunter2",
]
WITHOUT = [
    "s3://bucket/prefix",
    "s3://bucket/pre@fix",
    "https://example.com:9000/a?page=2",
    "http://[::1]:8265",
    "/data/a@b:c",
    "C:/Users/me",
    "registry.example.com/ifsq@sha256:abc",
    "https://example.com/a?tokens=17",
    "an error, see https://example.com: it says why",
]


@pytest.mark.parametrize("url", WITH)
def test_credentials_are_refused_and_not_shown(url: str) -> None:
    assert has_credentials(url)
    assert "hunter2" not in without_credentials(f"reading {url} failed")
    with pytest.raises(UserError, match="may not hold credentials") as caught:
        open_storage(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", WITHOUT)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert not has_credentials(text)
    assert without_credentials(text) == text


@pytest.mark.parametrize("part", ["a", "a:/", "://", "?token", "https://a/"])
def test_long_texts_are_looked_at_in_one_pass(part: str) -> None:
    text = part * (1_000_000 // len(part))  # in quadratic time this would take hours
    assert without_credentials(text) == text


def test_an_endpoint_with_credentials_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL: a URL may not") as caught:
        open_storage("s3://bucket/prefix")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["no url", "127.0.0.1:9000", "ftp://host", "http://", "http://a b"]
)
def test_an_endpoint_that_is_no_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL=.* is no address of a store"):
        open_storage("s3://bucket/prefix")


def test_settings_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "?")
    with pytest.raises(
        UserError, match=r"s3://bucket/prefix: .*S3PutConditional.*AWS_\* variables"
    ):
        open_storage("s3://bucket/prefix")
