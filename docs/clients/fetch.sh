#!/bin/sh
# Fetches what the examples need into the caches of the toolchains that are here, so that they build
# without a network afterwards:  sh docs/clients/fetch.sh [go node java rust]
set -eu
cd "$(dirname "$0")"
[ $# -gt 0 ] || set -- go node java rust
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/docs/clients"
cp -R ../../proto "$work/proto"

for language in "$@"; do
    case $language in
    go) tool=go ;; node) tool=npm ;; java) tool=mvn ;; rust) tool=cargo ;;
    *) echo "error: $language is none of go, node, java, rust" >&2; exit 2 ;;
    esac
    if ! command -v $tool >/dev/null 2>&1; then
        echo "$language: no $tool here" >&2
        continue
    fi
    cp -R "$language" "$work/docs/clients/"
    (
        cd "$work/docs/clients/$language"
        case $language in
        go)
            go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
            go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
            go mod download
            ;;
        node) npm install --no-audit --no-fund --ignore-scripts ;;
        java) mvn -q -B package ;;
        rust) cargo fetch ;;
        esac
    ) >&2
    echo "$language: ready"
done
