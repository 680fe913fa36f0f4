// Package freeze holds filesystems still for the moment in which a point in time of their device is taken: what is taken
// then is clean, as after an unmount, and not merely what a power loss would leave.
//
// A frozen filesystem blocks everyone who writes to it, so that it must never stay frozen: not when this process is
// killed, and not when what was to be done takes too long. A small shell is therefore started before anything is frozen. It
// lives in a process group of its own, ignores the signals that end a service, and waits on a pipe. It thaws when Limit has
// passed, and when the pipe closes without a word, which is what our death does. Should all processes be killed at
// once, a marker file on the disk says what may be frozen still, and Recover, which runs when the disk is opened, thaws it.
//
// The package lies here, beside the loop devices and the mount table that it works on, so that every engine can use it: for
// exports, for snapshots, and for whatever else takes a point in time. It sees the mounts of its own mount namespace only.
package freeze
