# lib.sh: what every script of the lab shares. Sourced, never run.
# shellcheck shell=bash

# Everything the lab fetches or makes lives here and is safe to delete.
LAB=${KTLS_LAB:-/tmp/ktls-lab}

# The guests. uml is User-Mode Linux (fast, 7.x, one CPU); the others are
# Debian kernels under QEMU; 7 stands for the newest that Debian backports.
LAB_GUESTS="uml 6.1 6.12 7"

# depmod and mkfs.ext4 live where an ordinary user's PATH doesn't look.
PATH=$PATH:/usr/sbin:/sbin

die() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

# check_lab makes sure that $LAB can hold a lab, and creates it.
check_lab() {
	case $LAB in
	*[!A-Za-z0-9/._-]* | [!/]*) die "KTLS_LAB=$LAB: an absolute path of plain letters is needed (it goes onto kernel command lines)" ;;
	esac
	# uml.sh writes this path over the 27 characters of another one.
	local loader=$LAB/g/ld.so
	[ ${#loader} -le 27 ] || die "KTLS_LAB=$LAB is too long: at most 19 characters, such as /tmp/ktls-lab"
	mkdir -p "$LAB" 2>/dev/null || true
	[ -w "$LAB" ] || die "KTLS_LAB=$LAB can't be written by $(id -un): choose another folder"
}

is_guest() {
	[[ " $LAB_GUESTS " == *" $1 "* ]]
}
