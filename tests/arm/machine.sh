#!/bin/bash
# Put an emulated ARM64 machine into FOLDER: qemu-user 10 and Python 3.13 of Debian 13, and wheels for aarch64.
# qemu 7.2 of Debian 12 crashes when onnxruntime is imported. Needs apt, dpkg-deb and pip; changes nothing elsewhere.
set -euo pipefail
folder=$(realpath --canonicalize-missing "$1")
mkdir -p "$folder"
cd "$folder"
[ -e complete ] && exit 0

prepare_apt() {  # ARCHITECTURE: lists of packages of their own
    mkdir -p "apt-$1/lists/partial" "apt-$1/cache/archives/partial"
    touch "apt-$1/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "apt-$1/sources.list"
    cat > "apt-$1.conf" <<END
APT::Architecture "$1"; APT::Architectures { "$1"; }; Acquire::Languages "none"; APT::Sandbox::User "root";
Dir::State::Lists "$folder/apt-$1/lists"; Dir::State::Status "$folder/apt-$1/status"; Dir::Cache "$folder/apt-$1/cache";
Dir::Etc::SourceList "$folder/apt-$1/sources.list"; Dir::Etc::SourceParts "/dev/null";
END
    APT_CONFIG="$folder/apt-$1.conf" apt-get --quiet --quiet update
}

configured=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | head -n 1 || true)
mirror=${DEBIAN_MIRROR:-$configured}
[ -n "$mirror" ] || { echo "No mirror of Debian is configured; name one with DEBIAN_MIRROR." >&2; exit 1; }
mkdir -p packages qemu root site
prepare_apt amd64
prepare_apt arm64
(
    cd packages
    APT_CONFIG="$folder/apt-amd64.conf" apt-get --quiet --quiet download qemu-user
    APT_CONFIG="$folder/apt-arm64.conf" apt-get --quiet --quiet download \
        python3.13-minimal libpython3.13-minimal libpython3.13-stdlib libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 \
        libssl3t64 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libncursesw6 libtinfo6 libreadline8t64 libzstd1
)
dpkg-deb --extract packages/qemu-user_*_amd64.deb qemu
for package in packages/*_arm64.deb; do dpkg-deb --extract "$package" root; done
[ -e root/lib ] || ln -s usr/lib root/lib
platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64
    --platform manylinux2014_aarch64)
${PYTHON:-python3} -m pip install --quiet --no-warn-conflicts --target site --only-binary :all: --implementation cp --python-version 3.13 \
    "${platforms[@]}" onnxruntime numpy pillow tokenizers click filelock huggingface_hub wcwidth
touch complete
