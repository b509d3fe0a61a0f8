#!/usr/bin/env bash
# Compiles sum.c and threads.c in $1, and puts them with all that they load of this node's Debian, Open MPI and PMIx
# above all, and a shell, into the folder root there: what an image with an MPI of its own is made of.
set -euo pipefail
cd "$1"
root=$PWD/root
rm -rf "$root" && mkdir -p "$root"/{bin,usr/bin,tmp,var/tmp}
for name in busybox sh ls; do cp /bin/busybox "$root/bin/$name"; done
mpicc -O1 -o "$root/usr/bin/sum" sum.c
gcc -fopenmp -o "$root/usr/bin/threads" threads.c
libraries=/usr/lib/x86_64-linux-gnu
for file in $(ldd "$root"/usr/bin/* $libraries/pmix2/lib/pmix/*.so | grep -o '/[^ :]*\.so[^ :]*' | sort --unique); do
    mkdir -p "$root${file%/*}"
    cp --dereference "$file" "$root$file"
done
for folder in $libraries/pmix2 /usr/share/openmpi /etc/openmpi; do
    mkdir -p "$root$folder"
    cp --recursive --dereference "$folder/." "$root$folder"
done
tar --create --file=root.tar root
