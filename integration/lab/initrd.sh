# initrd.sh: a guest's initramfs. Sourced, never run.
# shellcheck shell=bash

# build_initrd MODULES_BASE OUT MODULE...: packs PID 1 (lab/init) as /init and
# the named kernel modules with all they need, uncompressed and in the order of
# loading, as /modules/NNN-name.ko. A module that the kernel lacks or has built
# in is left out: init looks at what matters, kernel TLS itself.
build_initrd() {
	local base=$1 out=$2 version work n=0 m f name
	shift 2
	version=$(ls "$base/lib/modules")
	[ -e "$base/lib/modules/$version/modules.dep" ] || depmod -b "$base" "$version"
	work=$(mktemp -d "$LAB/initrd.XXXXXX")
	mkdir -p "$work"/{proc,sys,dev,run,modules}
	(cd "$(dirname "${BASH_SOURCE[0]}")" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$work/init" ./init)
	while read -r f; do
		name=$(basename "$f")
		name=$(printf %03d-%s "$n" "${name%.ko*}.ko")
		case $f in
		*.xz) xz -dc "$f" ;;
		*.zst) zstd -qdc "$f" ;;
		*) cat "$f" ;;
		esac >"$work/modules/$name"
		n=$((n + 1))
	done < <(for m in "$@"; do
		modprobe -d "$base" -S "$version" --show-depends --ignore-install "$m" 2>/dev/null || true
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }')
	(cd "$work" && find . | cpio -o -H newc --quiet | gzip -1) >"$out"
	rm -rf "$work"
	[ "$n" -gt 0 ] || die "no kernel module found for $version"
}
