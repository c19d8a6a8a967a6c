#!/bin/busybox sh
# The first process of the virtual machine. It makes the host's file system its own and runs one command there; or, with
# headstart.boot=DIRECTORY, it boots the system in that directory of the host, which runs the command as a unit.
/bin/busybox mkdir -p /proc /sys /dev /host /memory /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
depmod
# No program loads modules later. Which ciphers have one of their own depends on the kernel.
for module in virtio_pci 9p 9pnet_virtio overlay tls veth tcp_diag unix_diag \
    gcm ghash_generic ctr ccm aesni_intel chacha20poly1305 chacha chacha_generic poly1305_generic; do
    modprobe -q "$module"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /host
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
# The word after NAME= on the kernel's command line.
option() { sed -n "s/.*headstart\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
boot=$(option boot)
command=$(option command)
mount -t overlay -o "lowerdir=/host$boot,upperdir=/memory/upper,workdir=/memory/work" overlay /root

if [ -n "$boot" ]; then
    # The command and what it runs are files of the project.
    project=$(option project)
    mkdir -p "/root$project"
    mount -o bind "/host$project" "/root$project"
    cat >/root/etc/systemd/system/headstart-test.service <<UNIT
[Unit]
Description=The command of this virtual machine
Wants=network-online.target
After=multi-user.target
[Service]
ExecStart=/bin/sh -c 'sh $command >/dev/ttyS0 2>&1; echo \$? >/dev/ttyS1; poweroff -f -f'
UNIT
    exec switch_root /root /sbin/init
fi

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
chroot /root /bin/sh "$command"
echo $? >/root/dev/ttyS1
poweroff -f
