// Package plinthtest starts the real plinth for tests: the binary, built once, as a process of its own with a temporary
// data directory, a pool, a CSI socket and an API; and makes images to feed it: real QCOW2 and RAW files from mkfs and
// qemu-img, served on loopback.
//
// Everything a test leaves (the process, mounts, loop devices, the directory) is found again by the name of its temporary
// directory and removed when the test ends, also when it failed, and nothing else is touched. So several tests, and
// several runs of them, can be on one machine at once.
package plinthtest
