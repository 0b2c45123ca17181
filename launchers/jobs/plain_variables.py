"""Environment variables whose values may stand in a job's definition, which others can read."""

from __future__ import annotations

import re

from data_pipelines.errors import UserError
from data_pipelines.storage.credentials import HOW_INSTEAD, has_credentials
from ifsq_train.config.secrets import names_a_secret

PLAIN_PREFIXES = (
    "CUBLAS_", "CUDA_", "CUDNN_", "DALI_", "EFA_", "FI_", "GLOO_", "IFSQ_", "KMP_", "LC_",
    "MALLOC_", "NCCL_", "NVIDIA_", "OFI_NCCL_", "OMP_", "PYTORCH_", "RAY_", "RDMAV_",
    "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_", "TRITON_", "UCX_",
)  # fmt: skip
PLAIN_NAMES = frozenset({
    "AWS_ALLOW_HTTP", "AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT", "AWS_ENDPOINT_URL",
    "AWS_REGION", "AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "DS_ACCELERATOR",
    "HF_HOME", "HF_HUB_OFFLINE", "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LD_PRELOAD",
    "MKL_NUM_THREADS", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI", "NO_PROXY",
    "OPENBLAS_NUM_THREADS", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONPATH",
    "PYTHONUNBUFFERED", "PYTHONWARNINGS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
    "THP_MEM_ALLOC_ENABLE", "TMPDIR", "TOKENIZERS_PARALLELISM", "TZ", "WANDB_DIR", "WANDB_ENTITY",
    "WANDB_MODE", "WANDB_NAME", "WANDB_PROJECT", "XDG_CACHE_HOME", "http_proxy", "https_proxy",
    "no_proxy",
})  # fmt: skip
"""Names on this list travel as given, unless they hold a word such as TOKEN or PASSWORD."""


def is_plain(name: str) -> bool:
    """Whether a variable's value may be read by everybody who may read the job."""
    listed = name in PLAIN_NAMES or re.match("|".join(PLAIN_PREFIXES), name) is not None
    return listed and not names_a_secret(name)


def check_plain(name: str, value: str, *, allowed: bool) -> None:
    """Make sure that `name` may travel in a job's definition.

    Args:
        name: of the variable.
        value: never shown in an error.
        allowed: the user said so with ``--env-plain``.

    Raises:
        UserError: it may not.
    """
    if has_credentials(value):
        raise UserError(f"--env {name}: {HOW_INSTEAD}")
    if value and not allowed and not is_plain(name):
        what = "looks like a secret" if names_a_secret(name) else "is not known to be harmless"
        raise UserError(
            f"--env {name} {what}, and a job's definition can be read by others; put it into a"
            f" Secret and pass --secret {name}=SECRET:KEY, or add --env-plain to send it as it is"
        )
