"""`ifsq data copy`: datasets between folders, buckets and claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer

from data_pipelines.errors import UserError
from launchers.cli.cluster_options import Context, Namespace, connect_kubernetes, note

_PLACE = "Folder, s3://BUCKET/PREFIX or claim://CLAIM/PATH."


def copy(
    source: Annotated[str, typer.Argument(help=_PLACE)],
    target: Annotated[str, typer.Argument(help=_PLACE)],
    image: Annotated[
        str, typer.Option(help="Of the helper pod for a claim.", envvar="IFSQ_IMAGE")
    ] = "",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Copy a dataset; run again to finish what was interrupted. Every file is verified."""
    from data_pipelines.copying import copy_files

    with ExitStack() as stack:
        places = [
            stack.enter_context(_place(url, image, namespace, context)) for url in (source, target)
        ]
        done = copy_files(places[0], places[1], note)
    typer.echo(
        f"{done.files} files in {target}, {done.sent} of them sent ({done.sent_bytes:,} bytes)"
    )


@contextmanager
def _place(url: str, image: str, namespace: str | None, context: str | None) -> Iterator[Any]:
    from data_pipelines.copying import StoragePlace
    from data_pipelines.storage.open import open_storage

    if not url.startswith("claim://"):
        yield StoragePlace(open_storage(url))
        return
    from launchers.jobs.project import project_defaults
    from launchers.on_kubernetes.claim_place import claim_place

    claim, _, folder = url.removeprefix("claim://").partition("/")
    image = image or project_defaults().image or ""
    if not claim or ".." in folder.split("/"):
        raise UserError(f"'{url}' is not claim://CLAIM/PATH")
    if not image:
        raise UserError(f"{url} needs a helper pod; give its image with --image")
    with claim_place(connect_kubernetes(namespace, context), claim, folder, image) as place:
        yield place
