#!/bin/sh
# One image with one program, and what can be wrong with it.
set -eu
export HOME=/root
umask 022
mkdir -p /srv/images /srv/elsewhere /srv/keys
build() { # $1: image
    rm -rf /srv/root && mkdir -p /srv/root/tmp /srv/root/usr/bin
    for file in /usr/bin/id $(ldd /usr/bin/id | grep -o '/[^ ]*'); do
        mkdir -p "/srv/root$(dirname "$file")"
        cp -L "$file" "/srv/root$file"
    done
    apptainer --silent build --force "$1" /srv/root
}
sign() { # $1: whose key, $2: image
    export APPTAINER_CONFIGDIR="/root/$1"
    [ -d "$APPTAINER_CONFIGDIR" ] || echo lab |
        apptainer key newpair -N "$1 of the lab" -E "$1@example.org" -P '' -U=false
    apptainer sign "$2"
}
build /srv/images/unsigned.sif
cp /srv/images/unsigned.sif /srv/images/signed.sif
sign site /srv/images/signed.sif
cp /srv/images/unsigned.sif /srv/images/stranger.sif
sign stranger /srv/images/stranger.sif
cp /srv/images/signed.sif /srv/elsewhere/signed.sif
mkdir /srv/images/below && cp /srv/images/signed.sif /srv/images/below/
cp /srv/images/signed.sif /srv/images/changed.sif
# Somewhere in the file system, whose data begins at 36 KiB or 40 KiB.
printf changed | dd of=/srv/images/changed.sif bs=1 seek=300000 conv=notrunc status=none
cp -a /srv/root /srv/images/directory
mksquashfs /srv/root /srv/images/bare.squashfs -quiet -no-progress
truncate --size=16M /srv/images/bare.ext3 && mkfs.ext3 -q -d /srv/root /srv/images/bare.ext3
cp /root/site/keys/pgp-public /srv/keys/site.gpg
APPTAINER_CONFIGDIR=/root/site apptainer key list | sed -n 's/.*Fingerprint: *//p' >/srv/keys/site.fingerprint
