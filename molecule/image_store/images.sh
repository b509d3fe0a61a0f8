#!/usr/bin/env bash
# Makes /srv/built: images of real Apptainer, of which one is as the policy wants it and each other breaks one rule.
set -euo pipefail
umask 022
work=/srv/built.part
rm -rf "$work" && mkdir -p "$work" && cd "$work"
export APPTAINER_ENCRYPTION_PASSPHRASE=secret

root() { # $1: its folder; a root file system with a static program
    mkdir -p "$1"/{bin,dev,etc,proc,sys,tmp,usr/bin,var/tmp}
    cp /bin/busybox "$1/bin/busybox"
    ln -s busybox "$1/bin/sh"
    ln -s busybox "$1/bin/cat"
    echo "hello from the store" >"$1/etc/hello"
}
definition() { # $1: root file system, $2: tier
    printf 'Bootstrap: localimage\nFrom: %s\n\n%%labels\n  org.example.tier %s\n\n%%runscript\n  cat /etc/hello\n' "$1" "$2"
}
build() { # $1: name, $2: root file system, more: options
    definition "$work/$2" gold >"$1.def"
    apptainer --quiet build --force "${@:3}" "$1_1.0.sif" "$1.def"
}
key() { # $1: name
    mkdir -p "keys/$1" && chmod 0700 "keys/$1"
    APPTAINER_KEYSDIR=keys/$1 apptainer key newpair --name "$1" --email "$1@example.org" --comment '' \
        --password '' --push=false >/dev/null
    echo 0 | APPTAINER_KEYSDIR=keys/$1 apptainer key export --armor "$1.asc" >/dev/null
    gpg --homedir "$(mktemp -d)" --show-keys --with-colons "$1.asc" | awk -F: '/^fpr/ {print $10; exit}' >"$1.fpr"
}
sign() { # $1: who, $2: name
    APPTAINER_KEYSDIR=keys/$1 apptainer sign "$2_1.0.sif" >/dev/null
}

key site
key mallory

root plain
root setuid && cp plain/bin/busybox setuid/usr/bin/su && chmod 4755 setuid/usr/bin/su
root device && mknod device/dev/sda b 8 0
root capable && cp plain/bin/busybox capable/usr/bin/ping && setcap cap_net_raw+ep capable/usr/bin/ping
root open && chmod 0777 open/etc
root hostile && cp plain/bin/busybox "hostile/usr/bin/$(printf 'x\n-rw-r--r-- 0-0 1 y')"
chmod 4755 hostile/usr/bin/x*

for name in good unsigned unlocked other both; do build "$name" plain; done
for name in setuid device capable open hostile; do build "$name" "$name"; done
definition "$work/plain" bronze >labelled.def && apptainer --quiet build labelled_1.0.sif labelled.def
# As a user: root would need the kernel's device mapper.
definition "$work/plain" gold >/tmp/encrypted.def
(cd /tmp && runuser -u alice -- apptainer --quiet build --force --encrypt /tmp/encrypted_1.0.sif encrypted.def)
install --owner=root --group=root --mode=0644 /tmp/encrypted_1.0.sif .
cp good_1.0.sif overlay_1.0.sif && apptainer overlay create --size 64 overlay_1.0.sif

for name in good unlocked setuid device capable open hostile labelled encrypted overlay both; do sign site "$name"; done
sign mallory other
sign mallory both
# One byte of the signed root file system.
cp good_1.0.sif tampered_1.0.sif
size=$(stat --format=%s good_1.0.sif)
offset=$(apptainer sif info 3 good_1.0.sif | awk '/Offset:/ {print $2}')
[ "$offset" -lt "$size" ]
printf 'X' | dd of=tampered_1.0.sif bs=1 seek=$((offset + 200)) conv=notrunc status=none
head --bytes=40000 good_1.0.sif >cut_1.0.sif

chmod 0644 ./*.sif
# Without what was altered, and what nobody has approved yet.
for image in *.sif; do
    case $image in tampered* | cut* | unlocked*) continue ;; esac
    printf '{"name": "%s", "version": "1.0", "sha256": "%s", "size": %s}\n' \
        "${image%_1.0.sif}" "$(sha256sum "$image" | cut -d' ' -f1)" "$(stat --format=%s "$image")"
done | python3 -c 'import json, sys; print(json.dumps({"images": [json.loads(one) for one in sys.stdin]}))' >lock.json
rm -rf keys ./*.def plain setuid device capable open hostile
mv "$work" /srv/built
