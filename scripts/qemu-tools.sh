# Sourced by scripts/image and scripts/qemu-test: packages, pinned files, binfmt_misc.
# shellcheck shell=bash
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/edgeml/qemu-test
DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
DEBIAN_SNAPSHOT=${DEBIAN_SNAPSHOT:-http://snapshot.debian.org/archive/debian/20261115T000000Z}
BINFMT=/proc/sys/fs/binfmt_misc

say() { echo "${0##*/}: $*"; }
lacks() { say "$*" >&2; exit 5; }

# needs COMMAND:PACKAGE…: installs with apt, as root, what is not there.
needs() {
  local pair missing=()
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ "${#missing[@]}" != 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    lacks "missing: ${missing[*]}; run as root on Debian, or: apt install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >/dev/null || lacks "apt could not install ${missing[*]}; see above"
}

# pin NAME: its path below the mirror and its SHA-256.
pin() {
  if [ "$1" = qemu-user ]; then  # the one that edgeml check emulates with
    sed -nE "/^\[qemu.$(uname -m)\]/,/^\]/s/.* path = \"([^\"]+)\".* sha256 = \"([^\"]+)\".*/\1 \2/p" \
      edgeml/emulator/lock.toml
  else
    sed -n "s/^$1 //p" scripts/qemu.lock
  fi
}

# pinned NAME: the path of the package, fetched once and its SHA-256 checked.
pinned() {
  local path sha file address
  read -r path sha < <(pin "$1")
  file=$CACHE/${path##*/}
  mkdir -p "$CACHE"
  if ! echo "$sha  $file" | sha256sum --check --status 2>/dev/null; then
    for address in "$DEBIAN_MIRROR/$path" "$DEBIAN_SNAPSHOT/$path"; do
      curl --fail --silent --show-error --location --output "$file.part" "$address" && break
    done
    echo "$sha  $file.part" | sha256sum --check --status 2>/dev/null || {
      rm -f "$file.part"
      lacks "$1: $path could not be had from $DEBIAN_MIRROR with the SHA-256" \
        "that is pinned; set DEBIAN_MIRROR, or raise the version (scripts/qemu.lock)"
    }
    mv "$file.part" "$file"
  fi
  echo "$file"
}

# unpacked NAME [PATH…]: a folder with what the pinned package holds, or these paths of it.
unpacked() {
  local package folder
  package=$(pinned "$1")
  shift
  folder=${package%.deb}
  if [ ! -e "$folder" ]; then
    rm -rf "$folder.part"
    mkdir "$folder.part"
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$folder.part" "$@"
    mv "$folder.part" "$folder"
  fi
  echo "$folder"
}

# Has this kernel run arm64 programs with the pinned QEMU, until the script ends. Debian
# 12's own QEMU 7.2 is no use: it shows the guest the host's /proc/cpuinfo, and ONNX
# Runtime dies of that. Flag F: the interpreter is opened now and found in every chroot.
arm64_programs() {
  [ "$(uname -m)" != aarch64 ] || return 0
  [ "$(id -u)" = 0 ] || lacks "registering QEMU with binfmt_misc needs root"
  local qemu
  qemu=$(unpacked qemu-user ./usr/bin/qemu-aarch64)/usr/bin/qemu-aarch64
  mountpoint -q $BINFMT || mount -t binfmt_misc binfmt_misc $BINFMT \
    || lacks "this kernel has no binfmt_misc; arm64 programs cannot be run"
  # a name of its own: the script that called this one may have registered it too
  printf ':edgeml-aarch64-%d:M::%s:%s:%s:OCF' $$ \
    '\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' \
    '\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff' \
    "$qemu" > $BINFMT/register
  trap 'echo -1 > $BINFMT/edgeml-aarch64-$$' EXIT
}
