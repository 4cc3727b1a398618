# Runs in the guest: Debian's own kernel as an NVMe/TCP host of a Peristyle node on the machine outside.
# Arguments: PHASE PORT NQN FIO-SIZE KILLS. PHASE is `first` (before the node was killed), `second` (after), or `space`.
# `first` leaves /out/identifiers and /out/manifest; `second` finds them in /lab/job/before, and asks KILLS times for
# the node to be killed under fio by printing KILL on a line of its own. RESIZE and what follows on its line are given to
# `peristyle volume resize` for the volume of NSID 1. `space` prints SPACE, a moment and a size: the pool's space is looked
# at, and then the volume gets that size.
. /lab/lib.sh
phase=$1 port=$2 NQN=$3 fio_size=$4 kills=$5
before=/lab/job/before

# Prints the value of `name : value` in the output of nvme-cli.
field() { awk -F: -v n="$2" '{k=$1; gsub(/[ \t]/, "", k)} k == n {v=$2; gsub(/^[ \t]+|[ \t]+$/, "", v); print v; exit}' "$1"; }

connect() {
  nvme connect -t tcp -a 10.0.2.2 -s "$port" -n "$NQN" -i 8 -g -G -k 30 "$@" || fail "connect"
  wait_for 20 nvme_dev "$NQN" || fail "connected, and no block device appeared"
  dev=$(nvme_dev "$NQN")
  ctrl=$(basename "$(dirname "$(ls -d /sys/class/nvme/nvme*/subsysnqn | head -1)")")
  queues=$(cat /sys/class/nvme/$ctrl/queue_count)
  [ "$queues" = 9 ] || fail "$queues queues instead of 1 admin + 8 I/O"
  echo "connected: $dev, $queues queues, header and data digests"
}

disconnect() {
  nvme disconnect -n "$NQN" > /tmp/disconnect || fail disconnect
  grep -q 'disconnected 1 ' /tmp/disconnect || fail "disconnect: $(cat /tmp/disconnect)"
}

# Everything that must stay the same for the life of a volume, for all namespaces of the subsystem.
identifiers() {
  for n in /sys/class/nvme-subsystem/nvme-subsys*/nvme*n*; do
    case ${n##*/} in nvme*c*n*) continue ;; esac
    [ "$(cat "$n/../subsysnqn")" = "$NQN" ] || continue
    echo "nsid $(cat $n/nsid) uuid $(cat $n/uuid) nguid $(cat $n/nguid 2>/dev/null) bytes $(($(cat $n/size) * 512)) lba $(cat $n/queue/logical_block_size)"
  done | sort
}

no_errors_in_dmesg() {
  dmesg | grep -iE 'nvme|blk_|I/O error|Buffer I/O|EXT4-fs (error|warning)|XFS.*(error|corrupt)|BUG|WARNING|Oops|call trace|digest' |
    grep -iE 'error|warn|fail|timeout|time out|reset|invalid|unsupported|illegal|mismatch|changed|BUG|Oops|call trace|corrupt|refus' > /tmp/bad
  if [ -s /tmp/bad ]; then cat /tmp/bad; fail "errors in dmesg"; fi
  echo "dmesg: no errors"
}

sane_identify() {
  nvme id-ctrl /dev/$ctrl > /tmp/ctrl || fail id-ctrl
  [ "$(field /tmp/ctrl subnqn)" != "" ] || fail "id-ctrl: no subnqn"
  grep -q "$NQN" /tmp/ctrl || fail "id-ctrl: another NQN"
  [ "$(field /tmp/ctrl nn)" -ge 1 ] || fail "id-ctrl: nn"
  echo "id-ctrl: $(for f in sn mn fr mdts cntlid ver awun awupf vwc nn ioccsz; do printf '%s=%s ' $f "$(field /tmp/ctrl $f)"; done)"
  nvme id-ns $dev > /tmp/ns || fail id-ns
  nsze=$(($(field /tmp/ns nsze))) ncap=$(($(field /tmp/ns ncap)))
  [ $nsze -gt 0 ] && [ $ncap -le $nsze ] || fail "id-ns: nsze $nsze ncap $ncap"
  [ "$(grep -c 'in use' /tmp/ns)" = 1 ] || fail "id-ns: not exactly one LBA format in use"
  echo "id-ns: nsze=$nsze $(grep 'in use' /tmp/ns)"
  nvme smart-log /dev/$ctrl > /tmp/smart || fail smart-log
  [ $(($(field /tmp/smart critical_warning))) = 0 ] || fail "smart-log: critical warning"
  grep -q '^media_errors' /tmp/smart || fail "smart-log: $(cat /tmp/smart)"
  nvme error-log /dev/$ctrl > /tmp/errors || fail error-log
  nvme ns-descs $dev > /tmp/descs || fail ns-descs
  grep -q "$(cat /sys/block/${dev##*/}/uuid)" /tmp/descs || fail "ns-descs: no UUID"
  echo "smart-log, error-log, ns-descs: sane"
}

# What not every target says, but ours does.
promises() {
  grep -q 'traddr: *10.0.2.2$' /tmp/discover || fail "discover: not the advertised address"
  grep -q "trsvcid: *$port\$" /tmp/discover || fail "discover: not the advertised port"
  [ $(($(field /tmp/ctrl vwc) & 1)) = 0 ] || fail "id-ctrl: a volatile write cache; what is acknowledged must be durable"
  [ "$(field /tmp/ctrl mdts)" = 7 ] || fail "id-ctrl: mdts $(field /tmp/ctrl mdts) instead of 7 (512 KiB)"
  [ "$(field /tmp/ctrl awupf)" -ge 127 ] || fail "id-ctrl: awupf $(field /tmp/ctrl awupf) instead of 127 (128 blocks)"
  [ -z "$(identifiers | grep -v 'nguid [0-9a-f-]\{36\}')" ] || fail "a namespace without NGUID"
}

sectors_written() { awk '{print $7}' /sys/block/${dev##*/}/stat; }
more_written() { [ "$(sectors_written)" -gt "$1" ]; }
live() { [ "$(cat /sys/class/nvme/$ctrl/state)" = live ]; }
reconnections() { dmesg | grep -c 'Successfully reconnected'; }
reconnected() { [ "$(reconnections)" -gt "$1" ] && live; }

# The node is killed while fio writes; the host connects again by itself, and fio notices nothing but the time.
killed_under_fio() {
  connect -c 1 -l 120
  fio --name=kill --filename=$dev --rw=randwrite --bsrange=4k-256k --size=64m --io_size=$((kills * 12))m --rate=2m --direct=1 \
    --ioengine=io_uring --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --minimal \
    > /tmp/fio 2>&1 &
  fio=$!
  for n in $(seq "$kills"); do
    written=$(sectors_written) before=$(reconnections)
    wait_for 60 more_written $((written + 2048)) || fail "fio writes nothing: $(cat /tmp/fio)"
    kill -0 $fio || fail "fio has ended before the node was killed"
    echo KILL
    wait_for 60 reconnected "$before" || fail "not connected again: $(dmesg | tail -20)"
  done
  wait $fio || { cat /tmp/fio; dmesg | tail -30; fail "fio after the node was killed"; }
  dmesg | grep -E 'I/O error|Buffer I/O|critical .* error' && fail "an error reached the block layer"
  disconnect
  echo "fio verified across $kills kill -9, $(reconnections) reconnections"
}

bytes() { blockdev --getsize64 "$dev"; }
has_bytes() { [ "$(bytes)" = "$1" ]; }
mib=1048576

# The volume grows while its file system is mounted, and the file system after it; later it shrinks to what that needs.
resized() {
  before=$(bytes) answers=$(reconnections)
  grown=$((before + 512 * mib))
  echo "RESIZE $grown"
  wait_for 20 has_bytes $grown || fail "the host still sees $(bytes) bytes instead of $grown"
  blocks=$(stat -f -c %b /mnt)
  resize2fs $dev > /tmp/resize2fs 2>&1 || { cat /tmp/resize2fs; fail resize2fs; }
  [ "$(stat -f -c %b /mnt)" -gt $((blocks + 100000)) ] || fail "the file system has $(stat -f -c %b /mnt) blocks, before $blocks"
  # In the new space too: its last blocks are far behind the former end.
  dd if=$dev of=/tmp/last bs=$mib skip=$((grown / mib - 1)) count=1 iflag=direct 2> /dev/null || fail "the last MiB"
  mkdir /mnt/more && cp -a /lib/modules /mnt/more/ || fail "copy after resize2fs"
  umount /mnt || fail "umount after resize2fs"
  e2fsck -fn $dev > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail "fsck after resize2fs"; }
  echo "RESIZE $((grown + 64 * mib))"
  wait_for 20 has_bytes $((grown + 64 * mib)) || fail "the host sees $(bytes) bytes, not 64 MiB more"
  echo "RESIZE $grown --shrink"
  wait_for 20 has_bytes $grown || fail "the host sees $(bytes) bytes after the volume has become smaller"
  e2fsck -fn $dev > /tmp/fsck 2>&1 || { cat /tmp/fsck; fail "fsck after the volume has become smaller"; }
  live && [ "$(reconnections)" = "$answers" ] || fail "it connected again on the way"
  echo "resized: $before to $grown bytes with ext4 mounted, $((grown + 64 * mib)) and back, on one connection"
}

# Somebody outside looks at the pool, and says that he has by resizing the volume.
space() {
  more=$(($(bytes) + mib))
  echo "SPACE $1 $more"
  wait_for 120 has_bytes $more || fail "nobody has looked at the space: $1"
}

# Writes files until somebody outside says that this is enough.
fill() {
  more=$(($(bytes) + mib)) files=0
  echo "SPACE fill $more"
  until has_bytes $more; do
    files=$((files + 1))
    [ $files -le 28 ] || fail "$files files are not enough"
    dd if=/dev/urandom of=/mnt/data$files bs=1M count=8 oflag=direct 2> /tmp/dd || { cat /tmp/dd; fail dd; }
  done
  sync
  echo "wrote $files files of 8 MiB"
}

# What nothing refers to any more, the file system gives back: told by fstrim, and by mkfs.
space_comes_back() {
  # Extents come back when nothing in them is alive. So the file system's own blocks are kept together: without a journal,
  # and written at each sync only.
  echo 0 > /proc/sys/vm/dirty_writeback_centisecs
  mkfs.ext4 -q -F -O ^has_journal -E discard $dev || fail mkfs
  modprobe -q ext4; mount -t ext4 $dev /mnt || fail mount
  sync
  space made
  for how in fstrim mkfs; do
    fill
    case $how in
    fstrim)
      rm /mnt/data* && sync
      fstrim -v /mnt || fail fstrim
      ;;
    mkfs)
      umount /mnt || fail umount
      mkfs.ext4 -q -F -O ^has_journal -E discard $dev || fail "mkfs again"
      ;;
    esac
    space given-back
    echo "$how gave back"
  done
}

dmesg -c > /dev/null                          # what booting said is not our affair
modprobe nvme-tcp || fail nvme-tcp
case $phase in
first)
  say discover
  nvme discover -t tcp -a 10.0.2.2 -s "$port" > /tmp/discover || fail discover
  grep -E 'subnqn|traddr|trsvcid' /tmp/discover
  grep -q "subnqn: *$NQN\$" /tmp/discover || fail "discover: $NQN is not in the log"
  say connect
  connect
  sane_identify
  promises
  mkdir -p /out
  identifiers | tee /out/identifiers
  grep -q 'uuid [0-9a-f-]\{36\}' /out/identifiers || fail "no UUID"
  say "ext4: make, mount, copy a tree"
  mkfs.ext4 -q -F $dev || fail mkfs
  modprobe -q ext4; mount -t ext4 $dev /mnt || fail mount
  mkdir /mnt/tree && cp -a /bin /etc /lib/modules /lab /mnt/tree/ || fail copy
  ( cd /mnt/tree && find . -type f -print0 | sort -z | xargs -0 sha256sum ) > /out/manifest
  [ "$(wc -l < /out/manifest)" -gt 40 ] || fail "the tree is smaller than thought"
  say "resize"
  resized
  identifiers | tee /out/identifiers
  disconnect
  no_errors_in_dmesg
  echo "copied $(wc -l < /out/manifest) files"
  ;;
second)
  say "connect again"
  connect
  identifiers > /tmp/identifiers
  cat /tmp/identifiers
  while read -r line; do
    grep -Fxq "$line" /tmp/identifiers || fail "identifiers changed; before: $line"
  done < $before/identifiers
  echo "identifiers: the same"
  say "file system"
  e2fsck -fn $dev || fail "fsck"
  modprobe -q ext4; mount -t ext4 $dev /mnt || fail mount
  ( cd /mnt/tree && sha256sum -c $before/manifest > /tmp/sums ) || { grep -v ': OK' /tmp/sums; fail "checksums differ"; }
  echo "checksums: $(wc -l < $before/manifest) files equal"
  umount /mnt || fail umount
  say "fio: random writes, depth 32, verify=crc32c"
  # Every namespace of the subsystem; direct I/O is done in whole logical blocks, so 512 bytes need a volume of 512.
  identifiers | while read -r _ nsid line; do
    lba=${line##* }
    d=$(nvme_dev "$NQN" "$nsid")
    fio --name=verify --filename=$d --rw=randwrite --bsrange=$lba-1m --size=$fio_size --io_size=$fio_size --direct=1 \
      --ioengine=io_uring --iodepth=32 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --group_reporting --minimal \
      > /tmp/fio 2>&1 || { cat /tmp/fio; fail "fio on $d"; }
    awk -F';' -v d="$d, $lba..1 MiB" '/^3;/ {printf "verify ok: %s: wrote %d KiB, read back %d KiB\n", d, $47, $6}' /tmp/fio
  done || exit 1
  sane_identify
  nvme error-log /dev/$ctrl | grep -E 'error_count *: *[1-9]' && fail "the error log is not empty"
  disconnect
  no_errors_in_dmesg
  say "the node killed under fio"
  killed_under_fio
  ;;
space)
  say "space comes back"
  connect
  space_comes_back
  disconnect
  no_errors_in_dmesg
  ;;
*) fail "phase $phase" ;;
esac
echo PASS
