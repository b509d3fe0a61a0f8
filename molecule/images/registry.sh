#!/usr/bin/env bash
# Serves a registry on port 5000, and puts into it a container and, as an artifact, a SIF. Leaves their digests in
# /srv/images, and beside them a SIF of nobody's registry, and one that nobody will sign.
set -euo pipefail
cat >/etc/docker/registry/config.yml <<'END'
version: 0.1
storage:
  filesystem:
    rootdirectory: /var/lib/docker-registry
http:
  addr: :5000
END
systemctl enable --quiet docker-registry
systemctl restart docker-registry
timeout 60 bash -c 'until : >/dev/tcp/127.0.0.1/5000; do sleep 0.1; done' 2>/dev/null

umask 022
mkdir -p /srv/images.part && cd /srv/images.part
mkdir -p root/{bin,dev,etc,proc,sys,tmp,usr/bin,var/tmp}
cp /bin/busybox root/bin/busybox
for name in cat echo id sh; do ln -sf busybox "root/bin/$name"; done
printf '#!/bin/sh\necho "hello from a container as user $(id -u)"\n' >root/usr/bin/hello
chmod 0755 root/usr/bin/hello

tar --create --file=layer.tar --directory=root --sort=name --mtime=@0 --owner=0 --group=0 .
cat >config.json <<END
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "config": {"Cmd": ["/usr/bin/hello"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum layer.tar | cut -d' ' -f1)"]}}
END
echo '[{"Config": "config.json", "RepoTags": ["hello:1"], "Layers": ["layer.tar"]}]' >manifest.json
tar --create --file=hello.tar manifest.json config.json layer.tar
skopeo copy --quiet --insecure-policy --dest-tls-verify=false docker-archive:hello.tar docker://127.0.0.1:5000/hello:1

for name in tool given unsigned; do
    echo "$name, as a SIF" >root/etc/what
    apptainer --quiet build --force "$name.sif" root
done
apptainer push --no-https tool.sif oras://127.0.0.1:5000/tool:1
for name in hello tool; do
    skopeo inspect --raw --tls-verify=false "docker://127.0.0.1:5000/$name:1" >manifest
    echo "sha256:$(sha256sum manifest | cut -d' ' -f1)" >"$name.digest"
done
sha256sum given.sif | cut -d' ' -f1 >given.sha256
mv /srv/images.part /srv/images
