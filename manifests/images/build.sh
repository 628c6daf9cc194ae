#!/usr/bin/env bash
# Build Midstream's images, with Docker where it runs and with buildah elsewhere.
#
#   manifests/images/build.sh [--base IMAGE|debootstrap] [--name PREFIX] [--tag TAG] [--pip-config FILE]
#                             [--store FOLDER] [IMAGE...] [-- ARGUMENT...]
#
# IMAGE: midstream, midstream-gpu, midstream-kserve, midstream-function; by default all but the GPU's.
#
# --base        image that all stages start from: Debian with Python 3.11 and venv. "debootstrap" makes one from Debian's
#               packages (buildah and root only), for places without a registry of images; it is kept as
#               midstream-base:bookworm. Default: as the Containerfiles say.
# --name        what goes before the images' names, such as registry.example.com/midstream/. Default: localhost/
# --tag         default: the version in pyproject.toml
# --pip-config  a pip.conf for the build. It is mounted while pip runs and is in no layer, nor is what it says.
# --store       folder for images and containers, instead of buildah's own (buildah only)
# ARGUMENT      handed to the builder as it is, such as --volume /wheels:/wheels:ro
set -euo pipefail
shopt -s inherit_errexit

cd "$(dirname "$0")/../.."

fail() {
    echo "build.sh: $*" >&2
    exit 2
}

base=
name=localhost/
tag=
pip_config=
store=
images=()
while (($#)); do
    case "$1" in
        --?*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --base | --name | --tag | --pip-config | --store)
            (($# > 1)) || fail "$1 needs a value"
            variable="${1#--}"
            printf -v "${variable//-/_}" %s "$2"
            shift 2
            ;;
        --)
            shift
            break
            ;;
        -*) fail "there is no option $1; the first lines of this script name all" ;;
        *)
            images+=("$1")
            shift
            ;;
    esac
done
((${#images[@]})) || images=(midstream midstream-kserve midstream-function)
for image in "${images[@]}"; do
    case "$image" in
        midstream | midstream-gpu | midstream-kserve | midstream-function) ;;
        *) fail "there is no image $image; there are midstream, midstream-gpu, midstream-kserve and midstream-function" ;;
    esac
done
[[ -n $tag ]] || tag="$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)"
[[ -z $pip_config || -r $pip_config ]] || fail "--pip-config $pip_config cannot be read"

if [[ -z $store && $base != debootstrap ]] && docker info >/dev/null 2>&1; then
    builder=(docker buildx build --load)
elif command -v buildah >/dev/null; then
    storage=()
    [[ -z $store ]] || storage=(--root "$store/root" --runroot "$store/run" --storage-driver overlay)
    # chroot: a container would need more of the kernel than hosts without Docker tend to offer.
    builder=(buildah "${storage[@]}" build --isolation chroot --layers=false --format docker)
else
    fail "there is neither a running Docker nor buildah here"
fi

make_base() {
    local container image=localhost/midstream-base:bookworm keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    if ! buildah "${storage[@]}" inspect --type image "$image" >/dev/null 2>&1; then
        command -v debootstrap >/dev/null || fail "--base debootstrap: there is no debootstrap here"
        [[ -r $keyring ]] || fail "--base debootstrap: there is no $keyring"
        mirror="${MIDSTREAM_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | head -n 1)}"
        [[ -n $mirror ]] || fail "apt knows no Debian archive; run apt-get update, or set MIDSTREAM_DEBIAN_MIRROR"
        scratch="$(mktemp -d)"
        trap 'rm -rf "$scratch"' EXIT
        debootstrap --variant=minbase --keyring="$keyring" --include=ca-certificates,python3,python3-venv \
            bookworm "$scratch/root" "$mirror" >&2
        # What the image takes from its host when it runs, and what only apt's next update needs.
        rm -rf "$scratch"/root/{etc/{hostname,resolv.conf},var/{cache,lib}/apt/*,var/log/*,usr/share/{doc,man}/*,dev/*}
        container="$(buildah "${storage[@]}" from scratch)"
        tar --directory "$scratch/root" --create --file "$scratch/root.tar" .
        buildah "${storage[@]}" add --quiet "$container" "$scratch/root.tar" / >&2
        buildah "${storage[@]}" config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container" >&2
        buildah "${storage[@]}" commit --quiet --rm "$container" "$image" >&2
        rm -rf "$scratch"
    fi
    echo "$image"
}

options=()
if [[ $base == debootstrap ]]; then
    base="$(make_base)"
fi
[[ -z $base ]] || options+=(--build-arg "BASE_IMAGE=$base")
[[ -z $pip_config ]] || options+=(--secret "id=pip,src=$pip_config")

for image in "${images[@]}"; do
    given=()
    case "$image" in
        midstream) file=midstream ;;
        midstream-gpu)
            file=midstream
            given=(--build-arg ENGINE=gpu)
            ;;
        midstream-kserve) file=kserve ;;
        midstream-function) file=function ;;
    esac
    "${builder[@]}" "${options[@]}" "${given[@]}" "$@" \
        --file "manifests/images/Containerfile.$file" --tag "$name$image:$tag" .
    echo "built $name$image:$tag"
done
