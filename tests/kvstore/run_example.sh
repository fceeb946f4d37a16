#!/bin/sh
# Runs the example twice on a new folder: the first run must store everything, the second find it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
first=$("$1" "$folder/store")
second=$("$1" "$folder/store")
printf '%s\n--\n%s\n' "$first" "$second"
case $first in
*"found 0 of 64"*"stored 64 blocks: ok"*"found 64 of 64"*"loaded 64 blocks: ok"*"every byte"*) ;;
*) exit 1 ;;
esac
case $second in
*"stored 64"*) exit 1 ;;
*"found 64 of 64"*"loaded 64 blocks: ok"*"every byte"*) ;;
*) exit 1 ;;
esac
