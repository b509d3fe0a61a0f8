#!/usr/bin/env bash
# Makes, in the folder $1, the key that signs the images of the site, and a policy that wants its signature.
set -euo pipefail
umask 077
home=$(mktemp --directory)
trap 'gpgconf --homedir "$home" --kill all; rm -rf "$home"' EXIT
pass=(--homedir "$home" --batch --quiet --pinentry-mode loopback --passphrase 'correct horse')
gpg "${pass[@]}" --quick-generate-key 'images of the site' rsa3072 sign never
gpg "${pass[@]}" --armor --export >"$1/site.asc"
gpg "${pass[@]}" --armor --export-secret-keys >"$1/site.secret"
gpg --homedir "$home" --with-colons --list-keys | awk -F: '/^fpr/ {print $10; exit}' >"$1/site.fingerprint"
cat >"$1/image_policy.yml" <<END
rules:
  locked: true
  signatures:
    signers: [$(cat "$1/site.fingerprint")]
  architectures: [amd64, arm64]
  file_systems: [squashfs]
  setuid_files: []
  device_nodes: []
  file_capabilities: []
  owners: [root]
  mode: "0644"
  folder_mode: "0755"
scopes:
  - name: what users build themselves
    directories: [/scratch/*/images]
    rules: {locked: false, owners: null, mode: null, folder_mode: null}
END
