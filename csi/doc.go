// Package csi speaks the Container Storage Interface and asks provisioner for volumes. It is the only importer of
// the CSI specification: what is below it has words of its own, and what is in here is translation.
//
// An RPC passes through, from outside to inside:
//
//   - observation: a logger with the call's values in its context, the log line, the histogram, and panics made errors;
//   - status: the one table from backingimage.Kind to gRPC's codes. Codes are chosen by what they make the caller do:
//     after Canceled, DeadlineExceeded, Unavailable and Aborted the provisioner sidecar supposes that the call may
//     still be at work and asks again; every other code is final to it;
//   - exclusion: one call at a time for each volume and service; a second answers Aborted and does not wait;
//   - the method: parse the request into domain words or refuse it, ask provisioner, translate the answer.
//
// Identity is always served, Controller (and SnapshotMetadata with it) and Node as they are given.
//
// # Staging
//
// A node keeps no record of what is staged or published. Each call reads the kernel's table of mounts, and does what
// is missing: wait for the volume and attach it, look what is on the device, make a filesystem if the volume came
// without an image and the device is blank, check it, grow it, mount it. Whatever instruction a crash came after,
// the same call goes on from there.
package csi
