#!/bin/sh
# The first process of the guest that is protected: a network, a redis server,
# a check of memory, and a shell on the serial console. On the kernel's command
# line:
#   lab.ip=ADDRESS/BITS   of eth0
#   lab.check=MIB         keep so much random data, and compare its digest
#                         without end: `check: N passes` or `check: CORRUPT`
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
mount -t tmpfs run /run

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || echo "guest: cannot load $module"
done

address=
check=
for word in $(cat /proc/cmdline); do
    case "$word" in
        lab.ip=*) address=${word#lab.ip=} ;;
        lab.check=*) check=${word#lab.check=} ;;
    esac
done

ip link set lo up
if [ -n "$address" ]; then
    while [ ! -e /sys/class/net/eth0 ]; do usleep 20000; done
    ip addr add "$address" dev eth0
    ip link set eth0 up
    echo "guest: network up at $address"
fi

redis-server --port 6379 --bind 0.0.0.0 --protected-mode no --save '' --appendonly no &

if [ -n "$check" ]; then
    (
        dd if=/dev/urandom of=/run/checked bs=1M count="$check" 2>/dev/null
        digest=$(sha256sum </run/checked)
        passes=0
        while [ "$(sha256sum </run/checked)" = "$digest" ]; do
            passes=$((passes + 1))
            echo "check: $passes passes"
            sleep 1
        done
        echo "check: CORRUPT after $passes passes"
    ) &
fi

while :; do
    setsid sh -c 'exec sh -i </dev/ttyS0 >/dev/ttyS0 2>&1'
done
