#!/bin/sh
# Installs amiss where there is no Debian package for it: a virtual environment, and a service where systemd is there.
#
#     sh install.sh --dry-run      says what it would do, and does nothing
#     sudo sh install.sh           says it, asks, does it; again with newer files for an upgrade
#     sudo sh install.sh --uninstall
#
# It wants the files of `make dist` beside it and takes none of them that differs from SHA256SUMS. What a configuration is and what
# was learned on this machine (/etc/amiss, /var/lib/amiss) stays, whatever is done here; --uninstall --purge deletes the latter.
#
# Exit codes: 0 done; 2 wrong usage; 65 a file is not what SHA256SUMS says; 66 a file is not there; 69 this computer cannot run it;
# 73 something else is in the way; 77 not root.

set -eu

USAGE='usage: sh install.sh [--dry-run] [--yes] [--prefix /opt/amiss] [--python PYTHON] [--uninstall [--purge]]'
MARK=.amiss-install

refuse() {
	code=$1
	shift
	printf 'install.sh: %s\n' "$*" >&2
	exit "$code"
}

say() {
	printf '%s\n' "$*"
}

has() {
	command -v "$1" >/dev/null 2>&1
}

# Is the first dotted number at least the second? Only major and minor count.
at_least() {
	major=${1%%.*} rest=${1#*.}
	minor=${rest%%[!0-9]*}
	[ "$major" -gt "${2%%.*}" ] || { [ "$major" -eq "${2%%.*}" ] && [ "$minor" -ge "${2#*.}" ]; }
}

usable_computer() {
	system=$(uname -s) machine=$(uname -m)
	[ "$system" = Linux ] || refuse 69 "this is $system; the agent runs on Linux (models are made anywhere: pip install 'amiss[train]')"
	case $machine in
	x86_64 | amd64 | aarch64 | arm64) ;;
	*) refuse 69 "there is no ONNX Runtime for $machine: take a 64-bit system for x86-64 or Arm" ;;
	esac
	libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=
	case $libc in
	'glibc '*)
		at_least "${libc#glibc }" 2.28 || refuse 69 "glibc ${libc#glibc } is too old for ONNX Runtime, which wants 2.28: take a newer system"
		;;
	*) refuse 69 "the C library is not glibc (musl, as on Alpine?), and ONNX Runtime comes for no other: take the container image" ;;
	esac
}

# Sets $python to a path.
usable_python() {
	newest=
	for name in ${asked_python:-python3.14 python3.13 python3.12 python3.11 python3}; do
		found=$(command -v "$name" 2>/dev/null) || continue
		version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
		newest=${newest:-$version}
		at_least "$version" 3.11 || continue
		python=$found
		break
	done
	[ -n "$python" ] || {
		[ -z "$newest" ] || refuse 69 "Python $newest is too old, 3.11 or newer is needed: install one, and name it with --python"
		refuse 69 "there is no ${asked_python:-python3}: install Python 3.11 or newer, and name it with --python"
	}
	"$python" -c 'import struct, sys; sys.exit(struct.calcsize("P") != 8)' ||
		refuse 69 "$python is a 32-bit program, and there is no ONNX Runtime for those: take the 64-bit system"
	"$python" -c 'import ensurepip, venv' 2>/dev/null ||
		refuse 69 "$python has no venv module: sudo apt-get install python$version-venv, or what it is called on this system"
}

# One line of SHA256SUMS, against the file beside it.
genuine() {
	[ -f "$here/$1" ] || refuse 66 "$here/$1 is not there: download it again, beside install.sh"
	line=$(grep "^[0-9a-f]\{64\}  $1\$" "$here/SHA256SUMS") || refuse 65 "SHA256SUMS does not name $1: download both again, from one release"
	(cd "$here" && printf '%s\n' "$line" | sha256sum -c --status -) ||
		refuse 65 "$1 is not what SHA256SUMS says: half a download, or another release; download it again"
}

genuine_files() {
	[ -f "$here/SHA256SUMS" ] || refuse 66 "$here/SHA256SUMS is not there: download it beside install.sh"
	has sha256sum || refuse 69 "sha256sum is not installed, and nothing is taken unchecked: install coreutils"
	wheel=$(sed -n 's/^[0-9a-f]\{64\}  \(amiss-[0-9][0-9A-Za-z.]*-py3-none-any\.whl\)$/\1/p' "$here/SHA256SUMS")
	case $wheel in
	'') refuse 65 "SHA256SUMS names no wheel of amiss: download it again" ;;
	*[!0-9A-Za-z._-]*) refuse 65 "SHA256SUMS names several wheels of amiss: download that of one release" ;;
	esac
	release=${wheel#amiss-}
	release=${release%%-*}
	genuine "$wheel"
	genuine constraints.txt
	genuine amiss.service
	rules=
	if grep -q '  60-amiss\.rules$' "$here/SHA256SUMS"; then
		rules=60-amiss.rules
		genuine "$rules"
	fi
}

nothing_in_the_way() {
	if has dpkg-query && [ "$(dpkg-query -W -f '${db:Status-Status}' amiss 2>/dev/null)" = installed ]; then
		refuse 73 "amiss is installed as a Debian package: take its newer package, or sudo apt-get remove amiss first"
	fi
	[ ! -e "$prefix" ] || [ -e "$prefix/$MARK" ] ||
		refuse 73 "$prefix was not made by install.sh: move it away, or choose another --prefix"
}

agree() {
	[ "$dry" = no ] || exit 0
	[ "$(id -u)" -eq 0 ] || refuse 77 "only root may do that: sudo sh install.sh"
	[ "$yes" = no ] || return 0
	[ -t 0 ] || refuse 2 "nobody is there to ask: say --yes"
	printf 'Go on? [y/N] '
	read -r answer || answer=
	case $answer in y | Y | yes) ;; *) refuse 1 "nothing was done" ;; esac
}

# Where systemd is but does not run (a chroot, an image), units are put in place and start with it.
with_systemd() {
	[ ! -d /run/systemd/system ] || systemctl "$@" || say "systemctl $* failed; systemctl status amiss says more"
}

install_all() {
	usable_computer
	usable_python
	genuine_files
	nothing_in_the_way
	fresh=yes
	[ ! -e "$prefix/bin" ] || fresh=no
	say "amiss $release for $machine, with $python ($version):"
	say "  $prefix                                virtual environment; what amiss needs is fetched by pip, in the versions of constraints.txt"
	say "  /usr/local/bin/amiss                      a link to the program"
	if has systemctl; then
		say "  /etc/systemd/system/amiss.service         the service, enabled; it starts when there is a device.toml"
		[ -z "$rules" ] || say "  /etc/udev/rules.d/$rules         names for serial ports"
	else
		say "  no service: there is no systemd here; start it with: amiss run"
	fi
	if [ -e /etc/amiss/device.toml ]; then
		say "  /etc/amiss/device.toml                    is kept as it is"
	else
		say "  /etc/amiss                                a folder for your device.toml"
	fi
	[ ! -e /var/lib/amiss ] || say "  /var/lib/amiss                            is kept as it is"
	agree

	mkdir -p "$prefix"
	: >"$prefix/$MARK"
	venv=$(mktemp -d "$prefix/$release.XXXXXX")
	chmod 755 "$venv"
	# Made beside the one in use and taken at once: an upgrade that fails leaves what was there.
	trap 'rm -rf "$venv"' EXIT
	trap 'exit 130' INT TERM HUP
	"$python" -m venv "$venv" || refuse 69 "$python cannot make a virtual environment in $prefix; the lines above say why"
	"$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary=:all: -c "$here/constraints.txt" \
		"$here/${wheel}[update,modbus]" || refuse 69 "pip could not install it; the lines above say why. Nothing was changed"
	"$venv/bin/amiss" --version >/dev/null || refuse 69 "what was installed does not start; the lines above say why. Nothing was changed"
	ln -sfn "${venv##*/}" "$prefix/current.new"
	mv -T "$prefix/current.new" "$prefix/current"
	trap - EXIT INT TERM HUP
	# With these the folder itself is the virtual environment, for bin/pip too, and paths stay as they are.
	for part in bin lib pyvenv.cfg; do
		ln -sfn "current/$part" "$prefix/$part"
	done
	for old in "$prefix"/*; do
		[ -L "$old" ] || [ "$old" = "$venv" ] || rm -rf "$old"
	done

	mkdir -p /etc/amiss /usr/local/bin
	ln -sf "$prefix/bin/amiss" /usr/local/bin/amiss
	if has systemctl; then
		mkdir -p /etc/systemd/system
		sed "s|^ExecStart=/opt/amiss/bin/amiss |ExecStart=$prefix/bin/amiss |" "$here/amiss.service" >/etc/systemd/system/amiss.service.new
		mv /etc/systemd/system/amiss.service.new /etc/systemd/system/amiss.service
		if [ -n "$rules" ]; then
			mkdir -p /etc/udev/rules.d
			cp "$here/$rules" "/etc/udev/rules.d/$rules"
			if [ -d /run/udev ] && has udevadm; then
				udevadm control --reload || true
				udevadm trigger --action=change --subsystem-match=usb --subsystem-match=tty || true
			fi
		fi
		with_systemd daemon-reload
		if [ "$fresh" = yes ]; then
			systemctl enable -q amiss.service || say "systemctl enable failed; do it yourself: sudo systemctl enable amiss"
			with_systemd start amiss.service
		else
			with_systemd try-restart amiss.service
		fi
	fi
	say "amiss $release is installed."
	[ -e /etc/amiss/device.toml ] || say "Next: write /etc/amiss/device.toml (amiss config show --example), then: sudo systemctl start amiss"
}

uninstall() {
	[ -e "$prefix/$MARK" ] || refuse 66 "$prefix was not made by install.sh: nothing to take away"
	say "takes away:"
	say "  $prefix"
	[ "$(readlink /usr/local/bin/amiss)" != "$prefix/bin/amiss" ] || say "  /usr/local/bin/amiss"
	for file in /etc/systemd/system/amiss.service /etc/udev/rules.d/60-amiss.rules; do
		[ ! -e "$file" ] || say "  $file"
	done
	if [ "$purge" = yes ]; then
		say "  /var/lib/amiss: models, undelivered alerts, what was learned on this machine"
	else
		say "and leaves /var/lib/amiss (--purge takes it, too)"
	fi
	say "and leaves /etc/amiss, which you wrote"
	agree

	if [ -e /etc/systemd/system/amiss.service ]; then
		with_systemd stop amiss.service
		systemctl disable -q amiss.service || true
		rm -f /etc/systemd/system/amiss.service
		with_systemd daemon-reload
	fi
	rm -f /etc/udev/rules.d/60-amiss.rules
	[ "$(readlink /usr/local/bin/amiss)" != "$prefix/bin/amiss" ] || rm -f /usr/local/bin/amiss
	rm -rf "$prefix"
	# With DynamicUser= the first is a link to the second.
	[ "$purge" = no ] || rm -rf /var/lib/amiss /var/lib/private/amiss
	say "amiss is uninstalled."
}

# All of it is in functions, so that half a download of this file does nothing.
main() {
	prefix=/opt/amiss asked_python='' python='' dry=no yes=no what=install purge=no
	while [ $# -gt 0 ]; do
		case $1 in
		--dry-run) dry=yes ;;
		--yes) yes=yes ;;
		--uninstall) what=uninstall ;;
		--purge) purge=yes ;;
		--prefix | --python)
			[ $# -gt 1 ] || refuse 2 "$1 wants a value; $USAGE"
			if [ "$1" = --prefix ]; then prefix=${2%/}; else asked_python=$2; fi
			shift
			;;
		-h | --help)
			say "$USAGE"
			exit 0
			;;
		*) refuse 2 "$1 is no option; $USAGE" ;;
		esac
		shift
	done
	case $prefix in
	/*[!A-Za-z0-9/._+-]*) refuse 2 "--prefix $prefix: only letters, digits and / . _ + - , as systemd and sed read it" ;;
	/?*) ;;
	*) refuse 2 "--prefix wants a folder's whole path, not '$prefix'" ;;
	esac
	[ "$purge" = no ] || [ "$what" = uninstall ] || refuse 2 "--purge goes with --uninstall"
	here=$(cd "$(dirname "$0")" && pwd)
	if [ "$what" = install ]; then install_all; else uninstall; fi
}

main "$@"
