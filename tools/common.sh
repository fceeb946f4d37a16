# What the scripts of this folder share: where things are, how they speak and how they fail.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '==> %s\n' "$*" >&2; }

# fail CAUSE REMEDY: both on standard error, and the end.
fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  do:  %s\n' "$2" >&2
    exit 1
}
