#!/usr/bin/env bash
# Renews the lock files of this folder from pyproject.toml: `make lock`, with pip-tools in the current Python.
# Every file carries hashes and nothing about where the packages were fetched from.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { # FILE HEADER OPTION...
    local file=$1 header=$2
    shift 2
    {
        printf '# %s\n' "$header" \
            'Written by `make lock` for Python 3.11; a change belongs into pyproject.toml.'
        python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
            --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
            --resolver=backtracking --output-file=- "$@" | sed -e '/^--/d' -e 's/# via -r -$/# via pyproject.toml/' -e 's/#   -r -$/#   pyproject.toml/'
    } >"$file.new"
    mv "$file.new" "$file"
}

group() { # NAME: the requirements of a dependency group, one a line
    python -c 'import sys, tomllib
print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]]))' "$1"
}

compile requirements/runtime.txt "What Headwater needs to run." pyproject.toml
group dev | grep '^maturin' |
    compile requirements/build.txt "What builds the native module." -
group dev |
    compile requirements/dev.txt "What checks and tests Headwater, beside runtime.txt and build.txt." \
        --constraint requirements/runtime.txt --constraint requirements/build.txt -
