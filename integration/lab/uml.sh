# uml.sh: the User-Mode Linux guest: a Linux kernel that runs as an ordinary
# process, so user-space code in it has native speed and even -race is usable.
# It has one CPU and plain C ciphers: for correctness, never for speed.
# Sourced, never run.
# shellcheck shell=bash

# uml_setup GUEST DIR: fetches the kernel from Debian sid, the only suite that
# has a new one, and the C library it was linked with, into DIR.
uml_setup() {
	local dir=$2
	apt_need debian-archive-keyring kmod cpio xz-utils zstd e2fsprogs
	(suite_update sid && suite_get sid "$LAB/debs/uml" user-mode-linux libc6) ||
		die "Debian sid's user-mode-linux is not to be had; the QEMU guests test the same: integration/run plain 6.1 6.12 7"
	unpack "$LAB/debs/uml" "$dir"
	# The host's C library is older than the one the kernel wants. Starting it
	# through the newer ld.so won't do (it takes the end of its own program
	# image for the start of its memory), so the program's interpreter is
	# changed, in place: the new path must fit where the old one stood.
	ln -sfn "$LAB/uml/usr/lib/x86_64-linux-gnu" "$LAB/g"
	ln -sfn ld-linux-x86-64.so.2 "$dir/usr/lib/x86_64-linux-gnu/ld.so"
	NEW=$LAB/g/ld.so perl -0777 -pe '
		BEGIN { $old = "/lib64/ld-linux-x86-64.so.2"; $new = $ENV{NEW} . "\0" x (length($old) - length $ENV{NEW}) }
		$n = s/\Q$old\E\0/$new\0/; END { exit !$n }' "$dir/usr/bin/linux.uml" >"$dir/linux.uml" ||
		die "linux.uml names no interpreter to replace: the package has changed its build; use the QEMU guests"
	chmod +x "$dir/linux.uml"
	mkdir -p "$dir/base/lib"
	ln -sfn ../../usr/lib/uml/modules "$dir/base/lib/modules"
	build_initrd "$dir/base" "$dir/initrd.gz" gcm ccm ctr chacha chacha20poly1305 tls overlay loop sch_netem
}

# Each page that a process of the guest touches is a mapping of the host's. At the
# host's limit (65,530 by default, 256 MiB) page faults never end: the process
# spins for good.
UML_MAPPINGS=1048576

uml_raise_mappings() {
	local limit=/proc/sys/vm/max_map_count
	[ "$(cat $limit)" -lt $UML_MAPPINGS ] || return 0
	{ echo $UML_MAPPINGS >$limit || sudo -n sh -c "echo $UML_MAPPINGS >$limit"; } 2>/dev/null ||
		echo "vm.max_map_count is $(cat $limit): programs that use much memory will hang; run 'sysctl -w vm.max_map_count=$UML_MAPPINGS' as root" >&2
}

# uml_command GUEST OUT: sets COMMAND to the program that boots the guest. The
# host's root folder and OUT reach it through hostfs.
uml_command() {
	local dir=$LAB/uml out=$2 mem=${KTLS_LAB_MEM:-4096} ram=/dev/shm free options
	# The guest's memory is a sparse, executable file. /dev/shm is the place
	# for it, but in containers that is often tiny or mounted noexec.
	read -r free options < <(df --output=avail -m /dev/shm | tail -1 | tr '\n' ' '; findmnt -no OPTIONS -T /dev/shm)
	if [ "${free:-0}" -lt "$mem" ] || [[ ,$options, == *,noexec,* ]]; then
		ram=$LAB
	fi
	uml_raise_mappings
	# shellcheck disable=SC2034,SC2054 # for the caller; the commas are meant
	COMMAND=(env TMPDIR="$ram" LD_LIBRARY_PATH="$LAB/g" "$dir/linux.uml" mem="${mem}M" initrd="$dir/initrd.gz"
		con=null con0=null,fd:1 con1=null,fd:1 console=tty0 loglevel=5 panic=-1 seccomp=auto
		ubd0="$out/ext4.img" lab.root=hostfs lab.out="$out" lab.disk=/dev/ubda)
}
