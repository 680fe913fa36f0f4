#!/usr/bin/env bash
# Regenerates the CRDs and the deepcopy functions into a copy of their source, and fails when they differ from the tree's.
# Usage: verify.sh GO CONTROLLER_GEN
set -euo pipefail
go=$1 generator=$2
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/backingimage" "$work/deploy"
cp "$root/go.mod" "$root/go.sum" "$work/"
cp -r "$root/backingimage/api" "$work/backingimage/api"
(cd "$work" && $go run "$generator" object crd paths=./backingimage/api/... output:crd:dir=deploy/crds)

diff -ru "$root/backingimage/api" "$work/backingimage/api" && diff -ru -x kustomization.yaml "$root/deploy/crds" "$work/deploy/crds" || {
	echo "Generated files are out of date: run make generate and commit the result." >&2
	exit 1
}
