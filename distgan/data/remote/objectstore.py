"""Files on http(s), s3, gs and az servers, by obstore (pip install 'distgan[remote]'); its errors in one line."""

import configparser
import os
import re
import urllib.parse
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = ("http", "https", "s3", "gs", "az")
READ_TIMEOUT = timedelta(seconds=20)
RETRIES: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
"""Of a request, for credentials too; longer failures are the caller's, who can also go on where a body was cut."""
METADATA_SERVER = "169.254.169.254"  # asked for credentials, on every cloud, when nothing else has them


def check_address(address: str) -> None:
    """Raises UsageError unless `address` is one of a server."""
    scheme = address.split("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES[:-1]) + f" or {SCHEMES[-1]}://"
        raise UsageError(f"data.shards: unknown scheme in {address}; use a folder, {known}")
    try:
        parts = urllib.parse.urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0  # a port that is not a number raises
    except ValueError:
        has_host = False
    if not has_host:
        raise UsageError(f"data.shards: no host or bucket in {address}")


def open_store(address: str) -> "ObjectStore":
    """The store of a folder on a server; connects later.

    Credentials and endpoints come from where each cloud's tools take them: AWS_*, GOOGLE_* and AZURE_* variables, the
    AWS profile, gcloud's application default credentials, the machine's role. Raises UsageError.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url
    except ImportError:
        raise UsageError(f"{address}: obstore is not installed; pip install 'distgan[remote]'") from None
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": READ_TIMEOUT,
        "timeout": timedelta(days=7),  # of the whole body, which may be long; a stalled one ends by read_timeout
        "allow_http": not address.startswith("https://"),
    }
    try:
        if address.startswith("http"):
            return HTTPStore.from_url(address, client_options=options, retry_config=RETRIES)
        profile = aws_profile() if address.startswith("s3://") else {}
        return from_url(address, client_options=options, retry_config=RETRIES, **profile)  # type: ignore
    except (BaseError, ValueError, configparser.Error) as error:
        raise UsageError(f"{address}: {explain(error)[1]}") from None


def aws_profile() -> dict[str, str]:
    """Keys, region and endpoint of the AWS profile, less those that the environment gives, which obstore reads itself.

    Raises configparser.Error.
    """
    env = os.environ
    name = env.get("AWS_PROFILE", "default")
    section = name if name == "default" else f"profile {name}"  # of the config file; of the credentials file, the name
    files = configparser.ConfigParser(interpolation=None)
    files.read(Path(env.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser())
    values = dict(files[section]) if section in files else {}
    files.read(Path(env.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser())
    values |= dict(files[name]) if name in files else {}
    wanted = {"region": "region"} if not {"AWS_REGION", "AWS_DEFAULT_REGION"} & env.keys() else {}
    if not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"} & env.keys():
        wanted["endpoint_url"] = "endpoint"
    if "AWS_ACCESS_KEY_ID" not in env:
        wanted |= {f"aws_{key}": key for key in ("access_key_id", "secret_access_key", "session_token")}
    return {wanted[key]: value for key, value in values.items() if key in wanted}


def explain(error: Exception) -> tuple[bool, str]:
    """Whether trying again cannot help, and the cause in one line: obstore's exceptions have it only in their text."""
    text, _, details = str(error).partition("\n\nDebug source:")
    if METADATA_SERVER in text:
        return True, "no credentials found; a public bucket needs AWS_, GOOGLE_ or AZURE_SKIP_SIGNATURE=true"
    if status := re.search(r"status code: ((\d+)[\w ]*)", text):
        s3_error = re.search(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", text, re.DOTALL)
        reason = f" ({s3_error[1]}: {s3_error[2]})" if s3_error else ""
        code = int(status[2])
        return code < 500 and code not in (408, 425, 429), f"HTTP {status[1].strip()}{reason}"
    # the innermost cause is the last that the error's source names
    causes = ["".join(pair) for pair in re.findall(r'(?:message|error|source): (?:"([^"]+)"|(\w+),)', details)]
    cause = "invalid certificate" if "InvalidCertificate" in details else causes[-1] if causes else ""
    permanent = "HttpError" not in details or cause in ("invalid certificate", "TooManyRedirects")
    summary = re.sub(r"^(Generic \w+ error: |HTTP error: )+", "", " ".join(text.split(" - ")[-1].split()))
    return permanent, f"{summary} ({cause})" if cause else summary
