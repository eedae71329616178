#!/bin/sh
# Installs kiro-server from a release, and believes nothing that it didn't check.
#   sh install.sh [--version 1.2.3] [--to /usr/local/bin] [--from URL-or-folder]
# The archive's SHA-256 must be the one in SHA256SUMS. SHA256SUMS must be signed by the release workflow: cosign checks that
# where it is installed, and REQUIRE_SIGNATURE=1 refuses to go on without it.
set -eu
REPOSITORY=https://github.com/kiro-messages/kiro-messages
version=latest to=/usr/local/bin from=
while [ $# -gt 0 ]; do
  case $1 in --version | --to | --from) ;; *) echo "install.sh: unknown option $1" >&2; exit 2 ;; esac
  [ $# -gt 1 ] || { echo "install.sh: $1 wants a value" >&2; exit 2; }
  case $1 in --version) version=${2#v} ;; --to) to=$2 ;; --from) from=$2 ;; esac
  shift 2
done
fail() { echo "install.sh: $1. Nothing was installed." >&2; exit 1; }

case $(uname -s) in
  Linux) system=linux ;; Darwin) system=darwin ;; *) fail "no binaries for $(uname -s) here: npm has those for Windows" ;;
esac
case $(uname -m) in
  x86_64 | amd64) arch=x64 ;; aarch64 | arm64) arch=arm64 ;; *) fail "no binaries for $(uname -m): build it from source" ;;
esac
# Linked statically: it asks nothing of the system's libc.
[ $system = darwin ] && platform=darwin-$arch || platform=linux-$arch-musl

work=$(mktemp -d); new=$to/.kiro-server.$$; trap 'rm -rf "$work" "$new"' EXIT
if [ -z "$from" ]; then
  [ "$version" = latest ] && from=$REPOSITORY/releases/latest/download || from=$REPOSITORY/releases/download/v$version
fi
get() {
  case $from in
    https://*) if command -v curl > /dev/null; then curl -fsSL --proto '=https' -o "$work/$1" "$from/$1"
               else wget -q --https-only -O "$work/$1" "$from/$1"; fi ;;
    *://*) fail "$from: only https, or a folder" ;;
    *) cp "$from/$1" "$work/$1" ;;
  esac || fail "$from/$1 can't be had"
}
get SHA256SUMS
if command -v cosign > /dev/null; then
  get SHA256SUMS.sigstore.json
  cosign verify-blob --bundle "$work/SHA256SUMS.sigstore.json" --certificate-oidc-issuer https://token.actions.githubusercontent.com \
    --certificate-identity-regexp "^$REPOSITORY/\.github/workflows/release\.yml@refs/tags/v" "$work/SHA256SUMS" > /dev/null \
    || fail "SHA256SUMS isn't signed by the release workflow"
else
  [ "${REQUIRE_SIGNATURE:-}" = 1 ] && fail "the signature can't be checked: cosign is missing"
  echo "install.sh: the signature isn't checked, for cosign is missing; the checksum is." >&2
fi
[ "$version" = latest ] && wanted="kiro-server-[0-9.]*-$platform.tar.gz" || wanted="kiro-server-$version-$platform.tar.gz"
archive=$(sed -n "s/^[0-9a-f]\{64\} [ *]\($wanted\)\$/\1/p" "$work/SHA256SUMS")
[ "$(printf '%s\n' "$archive" | grep -c .)" = 1 ] || fail "SHA256SUMS names no archive of version $version for $platform"
get "$archive"
sum=$(command -v sha256sum || echo "shasum -a 256")
(cd "$work" && grep -F " $archive" SHA256SUMS | $sum -c - > /dev/null 2>&1) || fail "$archive isn't the one of the release"
tar -xzf "$work/$archive" -C "$work" || fail "$archive can't be unpacked"
# Beside the old one, then in its place: a full disk leaves the old one as it was.
mkdir -p "$to" && install -m 755 "$work/${archive%.tar.gz}/kiro-server" "$new" && [ ! -d "$to/kiro-server" ] \
  && mv -f "$new" "$to/kiro-server" || fail "$to can't be written (sudo? room?)"
"$to/kiro-server" --version
