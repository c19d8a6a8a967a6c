#!/bin/busybox sh
# The first process of the virtual machine: makes the host's file system its own, and runs one command there.
/bin/busybox mkdir -p /proc /sys /dev /host /memory /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
depmod
# No program loads modules later. Which ciphers have one of their own depends on the kernel.
for module in virtio_pci 9p 9pnet_virtio overlay tls \
    gcm ghash_generic ctr ccm aesni_intel chacha20poly1305 chacha chacha_generic poly1305_generic; do
    modprobe -q "$module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /host
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /root
for directory in proc sys dev; do
    mount --move "/$directory" "/root/$directory"
done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs memory /root/dev/shm
mount -t tmpfs memory /root/run
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t devpts devpts /root/dev/pts
ip link set lo up
# What this machine is for.
if ! grep -qw tls /root/proc/sys/net/ipv4/tcp_available_ulp; then
    echo "this kernel has no kTLS"
    echo 1 >/root/dev/ttyS1
    poweroff -f
fi
command=$(sed -n 's/.*headstart.command=\([^ ]*\).*/\1/p' /root/proc/cmdline)
chroot /root /bin/sh "$command"
echo $? >/root/dev/ttyS1
poweroff -f
