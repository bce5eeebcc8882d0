# apt.sh: Debian packages, for the host and for the guests. Sourced, never run.
# shellcheck shell=bash

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_need PACKAGE...: installs what is missing on the host, and only that.
apt_need() {
	local missing=() p log
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null || die "needs ${missing[*]}, and knows only Debian's apt to install them"
	echo "installing ${missing[*]}" >&2
	log=$(mktemp)
	# A vendor's repository that fails to update is none of our business:
	# the installation below decides.
	as_root apt-get update -qq >"$log" 2>&1 || true
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		-o DPkg::Lock::Timeout=300 "${missing[@]}" >>"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		rm -f "$log"
		die "apt-get could not install ${missing[*]}"
	}
	rm -f "$log"
}

# debian_mirror prints the archive that the host itself uses. apt is asked
# rather than its files, which come in two formats and many places.
debian_mirror() {
	if [ -n "${KTLS_LAB_MIRROR:-}" ]; then
		echo "$KTLS_LAB_MIRROR"
		return
	fi
	# shellcheck disable=SC2016 # apt fills it in
	local ask=(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian')
	local uri
	uri=$("${ask[@]}" | sed -n 1p)
	if [ -z "$uri" ]; then
		as_root apt-get update -qq >/dev/null 2>&1 || true # never updated: apt doesn't know whose archive is whose
		uri=$("${ask[@]}" | sed -n 1p)
	fi
	[ -n "$uri" ] || die "found no Debian archive in apt's sources: set KTLS_LAB_MIRROR to one (the URI of a sources.list line)"
	echo "$uri"
}

# suite_apt SUITE TOOL ARGUMENT...: apt-get or apt-cache for one Debian suite,
# after suite_update.
suite_apt() {
	local suite=$1 tool=$2
	shift 2
	"$tool" -c "$LAB/apt/$suite/apt.conf" "$@"
}

# suite_update SUITE: fetches the suite's package list. Lists and cache are the
# lab's own and the host's hooks are left out, so the host's apt never hears of
# it; of the host's settings only those for the network (a proxy, say) remain.
suite_update() {
	local suite=$1 dir=$LAB/apt/$1 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mirror=$(debian_mirror)
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/preferences.d"
	: >"$dir/status"
	echo "deb [signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "-";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "$dir/preferences.d";
		Dir::State::Lists "$dir/lists";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir/cache";
		APT::Architecture "amd64";
		APT::Architectures { "amd64"; };
		APT::Sandbox::User "root";
		APT::Update::Error-Mode "any";
		Acquire::Retries "3";
		Acquire::Languages "none";
		#clear APT::Update::Pre-Invoke;
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
	END
	suite_apt "$suite" apt-get update -qq ||
		die "could not fetch Debian's package list of $suite from $mirror (KTLS_LAB_MIRROR chooses another archive)"
}

# suite_get SUITE DIR PACKAGE...: downloads packages into DIR, which then holds
# exactly these .deb files; what is there already is not fetched again.
suite_get() {
	local suite=$1 dir=$2 want f
	shift 2
	mkdir -p "$dir"
	want=$(suite_apt "$suite" apt-get download --print-uris "$@" | awk '{print $2}')
	[ -n "$want" ] || die "$suite has no $*"
	(cd "$dir" && suite_apt "$suite" apt-get download -qq "$@") || die "could not download $* of $suite"
	for f in "$dir"/*.deb; do
		grep -qxF "$(basename "$f")" <<<"$want" || rm -f "$f"
	done
}

# unpack DIR TARGET: the contents of all .deb files in DIR, installing nothing.
unpack() {
	local f
	mkdir -p "$2"
	for f in "$1"/*.deb; do
		dpkg-deb -x "$f" "$2"
	done
}
