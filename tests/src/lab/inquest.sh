# What a machine of the lab knows when something went wrong: its guest's console,
# what clients wrote, the daemons' status, and where their threads stand.
tail -n 60 "$CONSOLE" 2>/dev/null
for file in /run/*.jsonl; do
    [ -e "$file" ] && echo "--- $file" && tail -n 3 "$file"
done
free
ps | grep -v '\['
dmesg | tail -n 20
for socket in /run/romulus/*.sock; do
    # Twice, to show what goes on: a status that stands still says where.
    for _ in 1 2; do
        [ -e "$socket" ] && echo "--- $socket" && timeout 3 romulus --json status "$socket"
        sleep 1
    done
done
for task in /proc/[0-9]*/task/*; do
    [ "$(readlink "${task%/task/*}/exe")" = /lab/bin/romulus ] || continue
    echo "--- thread $(cat "$task/comm"): $(grep State "$task/status"), in call $(cat "$task/syscall")"
    sed 's/^/    /' "$task/stack"
done
