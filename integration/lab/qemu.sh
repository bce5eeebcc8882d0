# qemu.sh: Debian kernels under QEMU: other versions, the CPU's own AES, two
# CPUs, and no hardware help needed. Emulation makes them 10 to 30 times slower
# than the host. Sourced, never run.
# shellcheck shell=bash

# qemu_setup GUEST DIR: fetches a kernel, and a QEMU where the host's is old.
qemu_setup() {
	local guest=$1 dir=$2 suite image version
	case $guest in
	6.1) suite=bookworm ;;
	6.12) suite=bookworm-backports ;;
	7) suite=trixie-backports ;;
	esac
	apt_need debian-archive-keyring kmod cpio xz-utils zstd e2fsprogs qemu-system-x86
	qemu_fetch
	suite_update "$suite"
	# linux-image-amd64 names the newest kernel; newer ones come in several
	# packages, all with the version in their names.
	image=$(suite_apt "$suite" apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { p = $2 } END { print p }')
	version=${image#linux-image-}
	[ -n "$version" ] || die "$suite has no linux-image-amd64"
	# shellcheck disable=SC2046 # package names hold no spaces
	suite_get "$suite" "$LAB/debs/$guest" $(suite_apt "$suite" apt-cache depends --recurse --important "$image" |
		grep "^linux-.*$version\$" | sort -u)
	unpack "$LAB/debs/$guest" "$dir"
	# Merged-/usr packages have /usr/lib/modules, older ones /lib/modules.
	local base=$dir kernel
	[ -d "$dir/lib/modules" ] || base=$dir/usr
	kernel=$(find "$dir" -name 'vmlinuz*' -type f | sed -n 1p)
	[ -n "$kernel" ] || die "no kernel image in the packages of $image"
	ln -sfn "${kernel#"$dir"/}" "$dir/vmlinuz"
	# Both the CPU's ciphers and the plain ones, by their old and new names.
	build_initrd "$base" "$dir/initrd.gz" virtio_pci virtio_blk virtio_rng 9pnet_virtio 9p overlay ext4 loop \
		aesni_intel ghash_clmulni_intel gcm ccm ctr chacha_x86_64 poly1305_x86_64 \
		chacha chacha_generic poly1305_generic chacha20poly1305 tls sch_netem
}

# qemu_fetch unpacks QEMU 10 into the lab if the host has none. Its shared
# libraries are those of the host's older one.
qemu_fetch() {
	local have
	have=$(qemu-system-x86_64 --version | grep -oE -m1 'version [0-9]+' | grep -oE '[0-9]+')
	[ "$have" -lt 10 ] || return 0
	[ ! -e "$LAB/qemu/done" ] || return 0
	suite_update bookworm-backports
	suite_get bookworm-backports "$LAB/debs/qemu" qemu-system-x86 qemu-system-common qemu-system-data seabios
	rm -rf "$LAB/qemu"
	unpack "$LAB/debs/qemu" "$LAB/qemu"
	touch "$LAB/qemu/done"
}

# qemu_command GUEST OUT: sets COMMAND to the program that boots the guest. The
# host's root folder and OUT reach it through 9p.
qemu_command() {
	local dir=$LAB/$1 out=$2 qemu=(qemu-system-x86_64) accel=tcg,thread=multi count=(-cpu max -smp 2) append=
	if [ -e "$LAB/qemu/done" ]; then
		qemu=("$LAB/qemu/usr/bin/qemu-system-x86_64" -L "$LAB/qemu/usr/share/qemu" -L "$LAB/qemu/usr/share/seabios")
	fi
	# Not by default: some machines have a /dev/kvm that boots only guests
	# made for it.
	[ "${KTLS_LAB_KVM:-0}" = 0 ] || accel=kvm
	if [ "${KTLS_LAB_ICOUNT:-0}" != 0 ]; then
		# sleep=off: an idle guest's clock leaps to its next timer. With
		# erms or fsrm the kernel copies by rep movsb, of which each byte
		# would count as an instruction.
		accel=tcg,thread=single
		count=(-icount "shift=0,sleep=off" -cpu "max,erms=off,fsrm=off" -smp 1)
		append=" tsc=reliable"
	fi
	# shellcheck disable=SC2034,SC2054 # for the caller; the commas are meant
	COMMAND=("${qemu[@]}" -M q35 -accel "$accel" "${count[@]}" -m "${KTLS_LAB_MEM:-4096}"
		-nodefaults -no-user-config -display none -nic none -no-reboot -serial stdio
		-kernel "$dir/vmlinuz" -initrd "$dir/initrd.gz"
		-device virtio-rng-pci
		-fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
		-device virtio-9p-pci,fsdev=root,mount_tag=root
		-fsdev "local,id=out,path=$out,security_model=none" -device virtio-9p-pci,fsdev=out,mount_tag=out
		-drive "file=$out/ext4.img,format=raw,if=virtio,cache=unsafe"
		-append "console=ttyS0 loglevel=5 panic=-1 reboot=t lab.root=9p lab.out=out lab.disk=/dev/vda$append")
}
