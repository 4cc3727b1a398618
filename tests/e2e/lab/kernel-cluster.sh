# Runs in the guest: Debian's own kernel as an NVMe/TCP host with a path to every node of a Peristyle cluster on the machine outside.
# Arguments: NQN ROUNDS PORT... (one for each node). Prints ROUND N when nodes may be killed, writes and verifies until the volume
# has become 1 MiB larger, and prints how long the longest command took.
. /lab/lib.sh
NQN=$1 rounds=$2; shift 2

paths() { ls -d /sys/class/nvme-subsystem/nvme-subsys*/nvme*/state 2> /dev/null | wc -l; }
live_paths() { cat /sys/class/nvme-subsystem/nvme-subsys*/nvme*/state 2> /dev/null | grep -c live; }
all_live() { [ "$(live_paths)" = "$wanted" ]; }
bytes() { blockdev --getsize64 "$dev"; }
has_bytes() { [ "$(bytes)" = "$1" ]; }

# The longest time that a command took, in milliseconds, of what fio printed.
longest_ms() {
  sed -n 's/^ *lat (\([a-z]*\)): min=[^,]*, max= *\([0-9.]*\)\(k*\),.*/\1 \2 \3/p' /tmp/fio | awk '
    { v = $2; if ($3 == "k") v *= 1000; if ($1 == "usec") v /= 1000; if ($1 == "nsec") v /= 1000000; if (v > m) m = v }
    END { printf "%d", m }'
}

pass() {
  fio --name=v --filename=/mnt/file --rw=randwrite --bsrange=4k-64k --size=24m --io_size=6m --rate=1m --direct=1 --ioengine=io_uring \
    --iodepth=8 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 > /tmp/fio 2>&1 || {
    cat /tmp/fio; dmesg | tail -40; fail "fio"; }
}

dmesg -c > /dev/null                          # what booting said is not our affair
modprobe nvme-tcp || fail nvme-tcp
[ "$(cat /sys/module/nvme_core/parameters/multipath)" = Y ] || fail "the kernel has no native multipath"
wanted=$#
for port in "$@"; do
  nvme connect -t tcp -a 10.0.2.2 -s "$port" -n "$NQN" -i 2 -k 5 -c 1 -l 600 || fail "connect to port $port"
done
wait_for 30 all_live || fail "$(live_paths) of $wanted paths are live"
wait_for 20 nvme_dev "$NQN" || fail "no block device appeared"
dev=$(nvme_dev "$NQN")
echo "connected: $dev, $wanted paths; states of the volume's group: $(cat /sys/class/nvme-subsystem/nvme-subsys*/nvme*/nvme*c*n*/ana_state | sort | uniq -c | tr -s ' \n' ' ')"
mkfs.ext4 -q -F $dev || fail mkfs
modprobe -q ext4; mount -t ext4 $dev /mnt || fail mount

for n in $(seq "$rounds"); do
  more=$(($(bytes) + 1048576)) passes=0 longest=0
  echo "ROUND $n"
  until has_bytes $more; do
    pass
    ms=$(longest_ms) passes=$((passes + 1))
    [ "$ms" -le "$longest" ] || longest=$ms
    [ $passes -le 60 ] || fail "nobody says that round $n is over"
  done
  echo "round $n: $passes passes verified, the longest command took $longest ms, $(live_paths) of $wanted paths live"
done

umount /mnt || fail umount
e2fsck -fn $dev > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail fsck; }
dmesg | grep -E 'I/O error, dev nvme[0-9]+n|Buffer I/O error|EXT4-fs error|critical .* error' && fail "an error reached the block layer"
nvme disconnect -n "$NQN" > /dev/null || fail disconnect
echo "fsck: clean; no I/O error"
echo PASS
