#!/bin/sh
# What a device prepared by `amiss device new` does when it starts for the first time. cloud-init runs this file from the boot
# partition of Raspberry Pi OS; it needs no network.
#
#   first-boot.sh radio COUNTRY              before the network comes up: let Wi-Fi transmit
#   first-boot.sh install ID [ssh] [uart|uart-5]    at the end of every start, until it has gone well once
#
# How it went is in amiss/first-boot.txt on the same partition, for whoever puts the card into a PC.
set -u
PATH=$PATH:/usr/sbin:/sbin
root=${AMISS_ROOT:-} # the tests' stand-in for /
boot=$root/boot/firmware
from=$boot/amiss
etc=$root/etc/amiss
again=$root/var/lib/cloud/scripts/per-boot/amiss-first-boot

# report VERDICT LINE…: the verdict first, so that it is seen
report() {
	{
		echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $1"
		shift
		for line in "$@"; do [ -z "$line" ] || printf '%s\n' "$line"; done
	} >"$from/first-boot.txt"
	sync
	cat "$from/first-boot.txt"
}

fail() {
	report "FAILED: $1" "${2:-}" "The next start tries again. All of it, on the device: sudo cat /var/log/cloud-init-output.log"
	exit 1
}

# On flash memory an overwritten block may live on somewhere; it no longer lies there for everybody to read.
forget() {
	shred -n 1 -u "$1" 2>/dev/null || rm -f "$1"
}

# take FILE TARGET MODE: from the card to its place, whole or not at all; what was there before is kept beside it
take() {
	if [ -f "$2" ] && ! cmp -s "$1" "$2"; then
		cp -p "$2" "$2.before"
	fi
	rm -f "$2.part"
	if ! { (umask 077 && cp "$1" "$2.part") && chmod "$3" "$2.part" && mv -f "$2.part" "$2"; }; then
		fail "cannot write $2"
	fi
	sync
	forget "$1"
}

radio() {
	# Raspberry Pi OS keeps the radio off until somebody has said in which country it is, in each of these places.
	sed -i -E "1s/ *cfg80211.ieee80211_regdom=[^ ]*//; 1s/\$/ cfg80211.ieee80211_regdom=$1/" "$boot/cmdline.txt"
	iw reg set "$1" 2>/dev/null
	rfkill unblock wifi 2>/dev/null
	for switch in "$root"/var/lib/systemd/rfkill/*:wlan; do
		if [ -f "$switch" ]; then echo 0 >"$switch"; fi
	done
	state=$root/var/lib/NetworkManager/NetworkManager.state
	if [ -f "$state" ]; then sed -i 's/^WirelessEnabled=false/WirelessEnabled=true/' "$state"; fi
}

# What cloud-init made of network-config is in /etc/netplan; on some releases nothing of it outlived the first start.
wifi() {
	profiles=$root/etc/NetworkManager/system-connections
	if ! grep -qs 'access-points:' "$root"/etc/netplan/*.yaml && ! grep -qs '^type=wifi' "$profiles"/*.nmconnection; then
		mkdir -p "$profiles"
		take "$from/secrets/wifi.nmconnection" "$profiles/amiss-wifi.nmconnection" 600
		nmcli connection reload 2>/dev/null
	fi
	forget "$from/secrets/wifi.nmconnection"
	forget "$boot/network-config"
	cp "$from/network-config.after" "$boot/network-config"
}

# free_uart PARAMETER: the console lets go of the pins 8 and 10, from the next start on
free_uart() {
	grep -qs "^$1\$" "$boot/config.txt" && ! grep -Eq 'console=(serial0|ttyAMA0|ttyS0)' "$boot/cmdline.txt" && return
	sed -i -E '1s/console=(serial0|ttyAMA0|ttyS0),[0-9]+ ?//g' "$boot/cmdline.txt"
	grep -qs "^$1\$" "$boot/config.txt" || printf '\n[all]\n%s\n' "$1" >>"$boot/config.txt"
	: >"$root/run/amiss-restart"
}

install_package() {
	set -- "$from"/amiss_*.deb
	if [ ! -f "$1" ]; then
		command -v amiss >/dev/null && return
		fail "no package" "Put amiss_…_arm64.deb into the folder amiss of this partition, and start the Pi again."
	fi
	[ $# = 1 ] || fail "$# packages" "Leave one of these in the folder amiss of this partition: $(cd "$from" && echo amiss_*.deb)"
	export DEBIAN_FRONTEND=noninteractive
	dpkg --configure -a # if the power went away in the middle of it
	# Whoever installs updates on the first start holds the lock for a while.
	said=$(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold "$1" 2>&1) || {
		printf '%s\n' "$said"
		fail "the package could not be installed" "$(printf '%s\n' "$said" | grep -E '^(E:|dpkg:| amiss )' | tail -n 5)"
	}
	printf '%s\n' "$said"
}

start() {
	if ! grep -qs systemd "$root/proc/1/comm"; then # an image that somebody makes
		systemctl enable amiss && return
		fail "the service could not be enabled"
	fi
	systemctl daemon-reload
	systemctl enable --now amiss
	systemctl is-active --quiet amiss ||
		fail "amiss is installed, and does not run" "$(journalctl -u amiss -n 5 -o cat --no-pager 2>&1)"
}

install_all() {
	id=$1
	shift
	if [ "$(cat "$etc/first-boot" 2>/dev/null)" = "$id" ]; then
		rm -f "$again"
		return
	fi
	drop_ins=$root/etc/systemd/system/amiss.service.d
	if ! mkdir -p "$etc/secrets" "$drop_ins" || ! chmod 700 "$etc/secrets"; then
		fail "cannot write to /etc/amiss"
	fi
	# Secrets first: they are to leave this partition whatever comes after.
	[ -f "$from/secrets/wifi.nmconnection" ] && wifi
	for file in "$from"/secrets/*; do
		[ -f "$file" ] && take "$file" "$etc/secrets/${file##*/}" 600
	done
	for file in "$from"/etc/*; do
		[ -f "$file" ] && take "$file" "$etc/${file##*/}" 644
	done
	for file in "$from"/amiss.service.d/*.conf; do
		[ -f "$file" ] && take "$file" "$drop_ins/${file##*/}" 644
	done
	for what in "$@"; do
		case $what in
		ssh) systemctl enable --now ssh ;;
		uart) free_uart enable_uart=1 ;;
		uart-5) free_uart dtparam=uart0=on ;;
		esac
	done
	install_package
	start
	echo "$id" >"$etc/first-boot"
	rm -f "$again"
	next="What counts from now on is /etc/amiss on the device; what is changed in this folder has no effect."
	what=$(dpkg-query -W -f '${Package} ${Version}' amiss 2>/dev/null || echo amiss)
	if [ -f "$root/run/amiss-restart" ]; then
		report "ok: $what is installed; the device restarts once for its serial port" "$next"
	else
		report "ok: $what is installed and started" "$next"
	fi
}

verb=${1:-}
[ $# -ge 2 ] && shift
case $verb in
radio) radio "$1" ;;
install) install_all "$@" ;;
*)
	echo "usage: first-boot.sh radio COUNTRY | install ID [ssh] [uart|uart-5]" >&2
	exit 2
	;;
esac
