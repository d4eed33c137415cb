"""A stock Raspberry Pi OS, some files on its boot partition, and it starts as a node of ours.

boot.py         what a device is to be → the files of its boot partition; pure
first-boot.sh   what the device does with them, once
wifi.py         a network's name and passphrase → what netplan and NetworkManager read
package.py      is this Debian package one that can be installed there?
card.py         the files onto a mounted card, or into a folder
new.py          `amiss device new`: from options, environment and files to the above
imager.py       what Raspberry Pi Imager wants to know of an image of our own
"""
