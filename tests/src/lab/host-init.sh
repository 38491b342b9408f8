#!/bin/sh
# The first process of a lab's machine. It loads the modules, mounts the
# project's disk, and obeys the control port: a line there is a number and a
# script in base64; the answer is the number, the exit code, stdout and stderr,
# both in base64 and `-` if empty. Daemons inherit descriptor 4, the log port.
# When nobody holds the other end of the control port any more, the machine
# turns itself off.
export PATH=/bin LD_LIBRARY_PATH=/lab/lib HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
mount -t tmpfs run /run

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || echo "lab: cannot load $module"
done

# The name comes after the device: the host tells it when the driver is ready.
port() {
    while :; do
        for device in /sys/class/virtio-ports/*; do
            if [ "$(cat "$device/name" 2>/dev/null)" = "$1" ]; then
                echo "/dev/${device##*/}"
                return
            fi
        done
        usleep 20000
    done
}

control=$(port control)
log=$(port log)
while ! mount -t squashfs -o ro /dev/vda /lab; do
    usleep 20000
done
ip link set lo up

encoded() {
    if [ -s "$1" ]; then base64 -w 0 "$1"; else printf -; fi
}

exec 3<>"$control" 4>"$log"
echo ready >&3
while read -r number script <&3; do
    echo "$script" | base64 -d >/run/script
    sh /run/script </dev/null >/run/stdout 2>/run/stderr 3<&-
    code=$?
    printf '%s %s %s %s\n' "$number" "$code" "$(encoded /run/stdout)" "$(encoded /run/stderr)" >&3
done
echo "lab: the control port is closed"
poweroff -f
