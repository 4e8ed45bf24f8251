"""The console script: `distgan train|sample|shards ...`."""

import importlib
import sys

VERBS = {
    "train": "train or continue a run",
    "sample": "generate a grid of images",
    "shards": "write, check and describe sets of shards",
}


def main() -> int:
    """Returns the exit code of the verb."""
    verb, *words = sys.argv[1:] or ["--help"]
    if verb in VERBS:
        return importlib.import_module(f"distgan.{verb}").main(words)
    lines = "\n".join(f"  distgan {name:<8} {what}" for name, what in VERBS.items())
    if verb in ("-h", "--help"):
        print(f"usage: distgan VERB ...\n\n{lines}\n\n`distgan VERB --help` tells more")
        return 0
    print(f"distgan: there is no verb {verb!r}; the verbs are {', '.join(VERBS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
